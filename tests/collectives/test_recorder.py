"""The flight recorder: what it remembers, also when its card cannot be asked any more."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from superpod.collectives.places import Place
from superpod.collectives.recorder import (
    FAILED,
    POSTED,
    SEND,
    WAITING,
    Recorder,
    read_record,
    read_record_of,
)

TEXT = "all_reduce(10 × float32, sum) by ring"


def here() -> Place:
    frame = sys._getframe(1)
    return frame.f_code, frame.f_lasti


def filled(slots: int, calls: int, *, shared: bool = False) -> Recorder:
    recorder = Recorder(slots, shared=shared)
    group = recorder.group("world", range(4))
    for number in range(calls):
        recorder.end(recorder.begin(group, number, TEXT, 40, time.perf_counter(), None), time.perf_counter())
    return recorder


def test_a_call_is_waiting_until_it_ends():
    recorder, before = Recorder(4), time.time()
    serial = recorder.begin(recorder.group("world", [0, 1]), 7, TEXT, 40, time.perf_counter(), here())
    (record,) = recorder.records()
    line = test_a_call_is_waiting_until_it_ends.__code__.co_firstlineno + 2
    assert record.place.startswith("test_a_call_is_waiting_until_it_ends() at ")
    assert record.place.endswith(f"test_recorder.py:{line}")
    assert (record.group, record.kind, record.number, record.call, record.nbytes) == (
        "world",
        "collective",
        7,
        TEXT,
        40,
    )
    assert (record.state, record.waits, record.ended, record.title) == ("waiting", True, None, f"{TEXT} (#7)")
    recorder.end(serial, time.perf_counter(), FAILED)
    (record,) = recorder.records()
    assert (record.state, record.waits) == ("failed", False)
    assert record.ended is not None
    assert before - 0.01 <= record.started <= record.ended <= time.time() + 0.01


def test_a_message_is_posted_awaited_and_done():
    recorder = Recorder(4)
    serial = recorder.begin(
        recorder.group("world", [0, 1]), 0, "send/recv(1 × int8, tag 3)", 1, 0.0, None, SEND, POSTED
    )
    states = [recorder.records()[0].state]
    for state in (WAITING, FAILED):
        recorder.note(serial, state)
        states.append(recorder.records()[0].state)
    assert states == ["posted", "waiting", "failed"]
    assert recorder.records()[0].title == "send/recv(1 × int8, tag 3)"


@pytest.mark.parametrize(("slots", "calls"), [(1, 0), (1, 5), (4, 3), (4, 4), (4, 5), (512, 1000)])
def test_the_latest_are_remembered_in_order(slots, calls):
    numbers = [record.number for record in filled(slots, calls).records()]
    assert numbers == list(range(max(0, calls - slots), calls))


def test_a_call_that_was_forgotten_does_not_end_another_one():
    recorder = Recorder(2)
    group = recorder.group("world", [0])
    old = recorder.begin(group, 0, TEXT, 0, 0.0, None)
    for number in (1, 2):
        recorder.begin(group, number, TEXT, 0, 0.0, None)
    recorder.end(old, 1.0)
    recorder.note(old, POSTED)
    assert [(record.number, record.state) for record in recorder.records()] == [(1, "waiting"), (2, "waiting")]


def test_no_slots_no_record():
    recorder = filled(0, 3, shared=True)
    assert (recorder.records(), recorder.fd) == ([], None)
    assert recorder.place_of(0, "world", TEXT, 0) == ""


def test_long_words_are_cut_at_whole_characters():
    recorder = Recorder(1)
    recorder.begin(recorder.group("world", [0]), 0, "×" * 200, 0, 0.0, None)
    assert recorder.records()[0].call == "×" * 54 + "…"


def test_of_a_long_place_the_line_stays():
    namespace = {"here": here}
    exec(compile("def " + "long" * 40 + "(): return here()", "train.py", "exec"), namespace)
    recorder = Recorder(1)
    recorder.begin(recorder.group("world", [0]), 0, TEXT, 0, 0.0, namespace["long" * 40]())
    place = recorder.records()[0].place
    assert place.startswith("…")
    assert place.endswith("longlong() at train.py:1")
    assert len(place.encode()) <= 88


def test_the_place_of_a_call_is_found_by_number_and_kind():
    recorder = Recorder(8)
    group, other = recorder.group("world", [0]), recorder.group("pair", [0])
    recorder.begin(group, 3, TEXT, 0, 0.0, here())
    recorder.begin(other, 3, TEXT, 0, 0.0, None)
    recorder.begin(group, 0, "send/recv(1 × int8, tag 3) to rank 1", 0, 0.0, here(), SEND)
    line = test_the_place_of_a_call_is_found_by_number_and_kind.__code__.co_firstlineno
    assert recorder.place_of(0, "world", TEXT, 3).endswith(f":{line + 3}")
    assert recorder.place_of(SEND, "world", "send/recv(1 × int8, tag 3)").endswith(f":{line + 5}")
    assert recorder.place_of(0, "world", TEXT, 4) == recorder.place_of(0, "pair", TEXT, 3) == ""


def test_who_holds_the_descriptor_reads_the_record_of_a_card_that_is_gone():
    recorder = Recorder(8, shared=True)
    assert recorder.fd is not None
    if (pid := os.fork()) == 0:  # the memory is shared, so this is what the launcher sees of a card
        recorder.begin(recorder.group("world", [0, 1]), 5, TEXT, 40, time.perf_counter(), None)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (record,), groups = read_record(recorder.fd)
    assert (record.number, record.state, record.group) == (5, "waiting", "world")
    assert groups == {"world": [0, 1]}


def test_the_record_of_a_process_that_is_stopped():
    if (pid := os.fork()) == 0:
        for link in Path("/proc/self/fd").iterdir():  # records of other tests in this process
            if os.path.lexists(link) and "superpod-record" in os.readlink(link):
                os.close(int(link.name))
        recorder = filled(8, 3, shared=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(recorder.slots)
    try:
        os.waitpid(pid, os.WUNTRACED)
        records, groups = read_record_of(pid)
        assert [record.number for record in records] == [0, 1, 2]
        assert groups == {"world": [0, 1, 2, 3]}
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert read_record_of(pid) == ([], {})


@pytest.mark.parametrize("size", [0, 10, 64, 100])
def test_what_is_no_record_reads_as_none(size):
    recorder = filled(4, 4, shared=True)
    assert recorder.fd is not None
    torn = os.memfd_create("torn")
    os.write(torn, os.pread(recorder.fd, size, 0))
    assert read_record(torn) == ([], {})
    os.close(torn)
    assert read_record(torn) == ([], {})


def test_a_closed_recorder_takes_calls_and_forgets_them():
    recorder = filled(4, 2, shared=True)
    recorder.close()
    recorder.end(recorder.begin(0, 9, TEXT, 0, 0.0, None), 0.0)
    assert (recorder.fd, recorder.slots) == (None, 0)
