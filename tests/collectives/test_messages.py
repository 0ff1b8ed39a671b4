"""The short way of messages that a card sends and receives again and again: what the long way promises, it keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from communicator_cards import links

from superpod.collectives.communicator import Communicator, in_memory
from superpod.collectives.messages import SMALL
from superpod.interconnect.errors import CollectiveMismatch, DeadlineExceeded, InvalidValue, PeerLost, SuperpodError
from superpod.launcher.testing import run_ranks


def warm(comm: Communicator, array: Any, times: int = 2) -> None:
    """Both cards of two send and receive, so that both have a form."""
    for _ in range(times):
        comm.send(array, 1 - comm.rank)
        comm.recv(np.zeros_like(array), 1 - comm.rank)


@links
@pytest.mark.parametrize("dtype", ["f4", "?", "M8[s]", "f4,i2", "c16"])
def test_arrays_of_any_kind_again_and_again(link: str, dtype: str) -> None:
    def card(comm: Communicator) -> None:
        for shape in ((), (0,), (3, 4), (SMALL // 16 + 1,)):
            raw = np.arange(int(np.prod(shape)) * np.dtype(dtype).itemsize, dtype=np.uint8) % 2
            for times in range(4):
                sent = (raw + (times + comm.rank) % 2).astype(np.uint8).view(dtype).reshape(shape)
                wanted = (raw + (times + 1 - comm.rank) % 2).astype(np.uint8).view(dtype).reshape(shape)
                for source in (sent, np.asfortranarray(sent)):
                    comm.send(source, 1 - comm.rank, 4)
                    into = np.zeros(shape, dtype)
                    assert comm.recv(into, 1 - comm.rank, 4) is into
                    assert into.tobytes() == wanted.tobytes()

    run_ranks(2, card, link=link)


@pytest.mark.parametrize("link", ["zmq", "shm"])
def test_messages_for_which_there_is_no_room_wait_for_their_turn(link: str) -> None:
    def card(comm: Communicator) -> None:
        if comm.rank == 0:
            for i in range(500):
                comm.send(np.full(8, i), 1)
        else:
            for i in range(500):
                assert comm.recv(np.zeros(8, int), 0).tolist() == [i] * 8

    run_ranks(2, card, link=link, env={"SUPERPOD_SEGMENT": "4K", "SUPERPOD_WINDOW": "4K"})


@links
def test_a_message_of_another_length_is_a_mismatch_the_second_time_too(link: str) -> None:
    def card(comm: Communicator) -> str:
        warm(comm, np.zeros(2))
        if comm.rank == 0:
            comm.send(np.zeros(3), 1)
        with pytest.raises(CollectiveMismatch) as raised:
            comm.recv(np.zeros(2), 1 - comm.rank)
        return str(raised.value)

    for text in run_ranks(2, card, link=link):
        assert "send/recv(3 × float64, tag 0)" in text
        assert "send/recv(2 × float64, tag 0)" in text


@links
def test_a_message_that_does_not_come_names_its_sender_and_ends_the_group(link: str) -> None:
    def card(comm: Communicator) -> str:
        warm(comm, np.zeros(2))
        comm._engine.timeout = 0.1 if comm.rank == 0 else 60
        with pytest.raises(SuperpodError) as raised:
            comm.recv(np.zeros(2), 1 - comm.rank)
        with pytest.raises(SuperpodError):  # now nothing is sent, either
            comm.send(np.zeros(2), 1 - comm.rank)
        states = [record.state for record in comm._engine._recorder.records()]
        assert states == ["done"] * 4 + ["failed"]
        return f"{type(raised.value).__name__}: {raised.value}"

    mine, theirs = run_ranks(2, card, link=link)
    assert mine.startswith(
        f"{DeadlineExceeded.__name__}: rank 0: Timed out after 0.1 s waiting for rank 1 in send/recv"
    )
    assert "rank 0" in theirs


@links
def test_a_peer_that_leaves_is_named(link: str) -> None:
    def card(comm: Communicator) -> str:
        warm(comm, np.zeros(2))
        if comm.rank == 1:
            comm.close()
            return ""
        with pytest.raises(PeerLost) as raised:
            comm.recv(np.zeros(2), 1)
        return str(raised.value)

    assert "rank 1" in run_ranks(2, card, link=link)[0]


def test_records_and_statistics_have_every_message() -> None:
    def card(comm: Communicator) -> None:
        warm(comm, np.zeros(2), times=5)
        records = comm._engine._recorder.records()
        assert [record.kind for record in records] == ["send", "recv"] * 5
        assert [record.number for record in records] == list(range(10))
        assert {record.state for record in records} == {"done"}
        assert all(record.ended is not None and record.ended >= record.started for record in records)
        assert len({record.place for record in records if record.kind == "send"}) == 1
        assert all("test_messages.py" in record.place for record in records)
        assert {record.call for record in records if record.kind == "recv"} == {
            f"send/recv(2 × float64, tag 0) from rank {1 - comm.rank}"
        }
        rows = {row["operation"]: (row["calls"], row["bytes"]) for row in comm._runtime.statistics.rows()}
        assert rows == {"send": (5, 80), "recv": (5, 80)}

    run_ranks(2, card, link="memory")


def test_a_wrong_peer_is_refused_though_there_is_a_lane_to_one_that_is_equal() -> None:
    def card(comm: Communicator) -> None:
        warm(comm, np.zeros(2))
        for peer in (float(1 - comm.rank), comm.rank, 2):
            with pytest.raises(InvalidValue, match="must be a rank of the group"):
                comm.send(np.zeros(2), peer)  # type: ignore[arg-type]
            with pytest.raises(InvalidValue, match="must be a rank of the group"):
                comm.recv(np.zeros(2), peer)  # type: ignore[arg-type]
        with pytest.raises(InvalidValue, match="tag"):
            comm.send(np.zeros(2), 1 - comm.rank, -1)

    run_ranks(2, card, link="memory")


def test_forms_are_few_whatever_the_tags() -> None:
    one, other = in_memory(2)
    for tag in range(3000):
        one.send(np.zeros(1), 1, tag)
        other.recv(np.zeros(1), 0, tag)
    assert len(one._messages._forms) <= 512
    one.close()
    other.close()
