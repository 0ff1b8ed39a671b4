from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpod.interconnect.control import AbortFlag, AbortSwitch, Failure, NewsDesk, send_news
from superpod.interconnect.errors import InvalidValue

KILLED = Failure(5, "b", 4711, "was killed by SIGKILL")


@pytest.fixture
def job(tmp_path):
    with contextlib.closing(AbortSwitch(tmp_path)) as switch:
        yield tmp_path, switch


def readable(flag: AbortFlag) -> bool:
    poll = select.poll()
    poll.register(flag.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def test_a_pulled_switch_reaches_every_card(job):
    directory, switch = job
    with contextlib.ExitStack() as stack:
        flags = [stack.enter_context(contextlib.closing(AbortFlag(directory))) for _ in range(64)]
        assert not any(readable(flag) for flag in flags)
        assert {flag.failure() for flag in flags} == {None}
        switch.pull(KILLED)
        assert all(readable(flag) for flag in flags)
        assert {flag.failure() for flag in flags} == {KILLED}


def test_the_first_failure_counts(job):
    directory, switch = job
    with contextlib.closing(AbortFlag(directory)) as flag:
        switch.pull(KILLED)
        switch.pull(Failure(6, "b", 4712, "raised PeerLost"))
        assert flag.failure() == KILLED


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (KILLED, "rank 5 (host b, pid 4711) was killed by SIGKILL"),
        (Failure(-1, "", 0, "the launcher has ended"), "the launcher has ended"),
    ],
)
def test_a_failure_reads_as_a_sentence(failure, text):
    assert str(failure) == text


@pytest.mark.parametrize("obstacle", ["abort.json.draft", "abort.json"])
def test_cards_hear_of_it_even_when_the_cause_cannot_be_written(job, obstacle):
    directory, switch = job
    (directory / obstacle).mkdir()  # stands for a full disk: writing there fails
    (directory / obstacle / "x").touch()
    with contextlib.closing(AbortFlag(directory)) as flag:
        switch.pull(KILLED)
        assert readable(flag)
        assert str(flag.failure()) == "the launcher has ended"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"rank": 1}', '{"who": 1}'])
def test_a_torn_cause_is_no_error(job, text):
    directory, switch = job
    with contextlib.closing(AbortFlag(directory)) as flag:
        (directory / "abort.json").write_text(text)
        switch.close()
        assert str(flag.failure()) == "the launcher has ended"


def test_a_late_card_hears_of_it_too(job):
    directory, switch = job
    switch.pull(KILLED)
    with contextlib.closing(AbortFlag(directory)) as flag:
        assert flag.failure() == KILLED


def test_the_death_of_the_launcher_is_seen(tmp_path):
    code = (
        "import sys, pathlib; from superpod.interconnect.control import AbortSwitch\n"
        "switch = AbortSwitch(pathlib.Path(sys.argv[1])); print('up', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout.readline() == "up\n"
        with contextlib.closing(AbortFlag(tmp_path)) as flag:
            assert not readable(flag)
            os.kill(launcher.pid, signal.SIGKILL)
            poll = select.poll()
            poll.register(flag.fileno(), select.POLLIN)
            assert poll.poll(10_000)
            assert str(flag.failure()) == "the launcher has ended"


def test_a_directory_without_a_job_is_refused(tmp_path):
    with pytest.raises(
        InvalidValue, match=r"SUPERPOD_DIR=.*nowhere is not the directory of a running job \(No such file"
    ):
        AbortFlag(tmp_path / "nowhere")


@pytest.fixture
def desk(tmp_path):
    with contextlib.closing(NewsDesk(tmp_path)) as desk:
        yield tmp_path, desk


def test_news_arrive_in_order_with_their_sender(desk):
    directory, desk = desk
    assert desk.read() == []
    for i in range(8):  # the kernel keeps about ten unread ones, then the sender waits
        assert send_news(directory, 3, "progress", done=i)
    items = desk.read()
    assert [item["done"] for item in items] == list(range(8))
    assert {(item["event"], item["rank"], item["pid"]) for item in items} == {("progress", 3, os.getpid())}
    assert desk.read() == []


def test_without_a_launcher_news_go_nowhere(tmp_path):
    assert not send_news(None, 0, "up")
    assert not send_news(tmp_path, 0, "up")


def test_a_gone_launcher_is_no_error(tmp_path):
    NewsDesk(tmp_path).close()
    assert not send_news(tmp_path, 0, "up")


@pytest.mark.parametrize(("nbytes", "sent"), [(127 << 10, True), (128 << 10, False)])
def test_news_have_a_bound(desk, nbytes, sent):
    directory, desk = desk
    assert send_news(directory, 0, "error", text="x" * nbytes) == sent
    assert len(desk.read()) == sent


@settings(deadline=None)  # the machine may be busy
@given(
    st.one_of(
        st.binary(),
        st.recursive(
            st.none() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
        ).map(msgpack.packb),
    )
)
def test_what_is_no_news_item_is_left_out(datagram):
    with tempfile.TemporaryDirectory() as name, contextlib.closing(NewsDesk(Path(name))) as desk:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.sendto(datagram, f"{name}/news")
        assert send_news(Path(name), 0, "up")
        events = [item["event"] for item in desk.read()]
        assert events[-1] == "up"
        assert all(isinstance(event, str) for event in events)


def test_news_with_text_that_is_no_text_arrive(tmp_path):
    with contextlib.closing(NewsDesk(tmp_path)) as desk:
        assert send_news(tmp_path, 0, "error", message="no file a\udcff")
        assert desk.read()[0]["message"] == "no file a\\udcff"


def test_who_has_ended_well_can_be_looked_up(job):
    directory, switch = job
    flag, own = AbortFlag(directory), AbortFlag(directory, own_ranks=True)
    with contextlib.closing(flag), contextlib.closing(own):
        assert flag.gone(3) is None
        switch.note_gone(3, "exited with code 0")
        assert [flag.gone(3), flag.gone(2), own.gone(3)] == ["exited with code 0", None, None]
        assert flag.failure() is None
