"""Links that take their time: latency, rate, queues, order; and the statement of how well that went."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager

import numpy as np
import pytest
from cards import SHAPED, Card, dictionary, exit_code, forked, make_links, together

from superpod.interconnect.calendar import Calendar
from superpod.interconnect.link import Arrival, Broken, Refused
from superpod.interconnect.memory_link import MemoryFabric
from superpod.interconnect.shaped_link import Roads, ShapedLink
from superpod.interconnect.topology import Level, Topology
from superpod.interconnect.topology_faults import Faults, lay

LATENCY, RATE = 0.02, 50e6  # s, B/s: long enough for a busy host to keep


def machine(kind="full_mesh", n=4):
    return lay(Topology("slow", levels=(Level("level", kind, n, RATE, LATENCY),)))


@contextmanager
def shaped(n=2, kind="full_mesh", scale=1.0, below="memory", tmp_path=None):
    """Shaped links of n cards, which have met."""
    wires = machine(kind, max(n, 2))
    calendar = Calendar(wires.nlinks)
    inner = MemoryFabric(n).links if below == "memory" else make_links(below, n, tmp_path)
    links = [ShapedLink(link, Roads(wires, np.arange(n), scale), calendar) for link in inner]
    for link in links:
        for other in links:
            if other.rank > link.rank:
                link.connect(other.rank, other.address)
    yield links
    for link in links:
        link.close(0)


def arrivals(link, count, start):
    """(seconds since `start`, event) of the next events."""
    found = []
    while len(found) < count:
        assert time.monotonic() - start < 10, found
        link.wait(0.5)
        while (event := link.take()) is not None:
            found.append((time.monotonic() - start, event))
    return found


def assert_soonest(attempt, *expected):
    """Of several attempts, for the host may be busy: none is early, and the soonest is at most a tenth late [s]."""
    soonest = np.full(len(expected), np.inf)
    for _ in range(50):
        times = np.array(attempt())
        assert (times >= np.array(expected) - 1e-4).all()
        soonest = np.minimum(soonest, times)
        if (soonest <= 1.1 * np.array(expected)).all():
            return
    raise AssertionError(f"{soonest} is more than a tenth above {expected}")


def times_of(link, count, start):
    return [seconds for seconds, _ in arrivals(link, count, start)]


@pytest.mark.parametrize("below", [kind.removeprefix("shaped-") for kind in SHAPED])
def test_latency_and_rate_are_within_a_tenth(below, tmp_path):
    nbytes = 5_000_000
    with shaped(below=below, tmp_path=tmp_path) as (a, b):
        for size in (0, nbytes):

            def attempt(size=size):
                start = time.monotonic()
                a.post(1, b"h", bytes(size))
                ((seconds, event),) = arrivals(b, 1, start)
                assert (bytes(event.header), len(event.payload)) == (b"h", size)
                return [seconds]

            waited_for = b.report()["frames"]
            assert_soonest(attempt, LATENCY + size / RATE)
            while b.report()["frames"] == waited_for:  # who comes late has not waited
                attempt()
        report = b.report()
        assert 1 <= report["on_time"] <= report["frames"]
        assert report["took"] >= report["asked"] > 1.99 * LATENCY + nbytes / RATE


def test_the_scale_stretches_both():
    with shaped(scale=2.0) as (a, b):

        def attempt():
            start = time.monotonic()
            a.post(1, b"h", bytes(1_000_000))
            return times_of(b, 1, start)

        assert_soonest(attempt, 2 * (LATENCY + 1_000_000 / RATE))


def test_a_busy_link_queues_and_others_do_not():
    with shaped(3) as (a, b, c):

        def queue():
            start = time.monotonic()
            for _ in range(3):
                a.post(1, b"h", bytes(1_000_000))  # 20 ms each on the link 0→1
            return times_of(b, 3, start)

        assert_soonest(queue, LATENCY + 0.02, LATENCY + 0.04, LATENCY + 0.06)

        def side_by_side():
            start = time.monotonic()
            a.post(1, b"h", bytes(3_000_000))
            a.post(2, b"h", bytes(1_000_000))
            soon = times_of(c, 1, start)
            times_of(b, 1, start)
            return soon

        assert_soonest(side_by_side, LATENCY + 0.02)
    with shaped(3, kind="switch") as (a, b, c):

        def meet():
            start = time.monotonic()
            a.post(2, b"h", bytes(1_000_000))
            b.post(2, b"h", bytes(1_000_000))  # on the way down to card 2
            return times_of(c, 2, start)

        assert_soonest(meet, LATENCY + 0.02, LATENCY + 0.04)


def test_placement_decides_which_links_are_passed():
    wires = lay(Topology("two", levels=(Level("x", "full_mesh", 2, 1e9, 1e-6), Level("y", "full_mesh", 2, 1e8, 5e-6))))
    near, far = Roads(wires, np.array([0, 1]), 1.0).way(0, 1), Roads(wires, np.array([0, 3]), 1.0).way(0, 1)
    assert (near.latency, near.seconds.tolist()) == (1e-6, [1e-9])
    assert far.latency == pytest.approx(6e-6)
    assert sorted(far.seconds.tolist()) == [1e-9, 1e-8]


def test_a_straggler_is_felt():
    topology = Topology("slow", levels=(Level("level", "full_mesh", 3, RATE, LATENCY),))
    roads = Roads(lay(topology, Faults.parse("straggler 1:4")), np.arange(3), 1.0)
    assert roads.way(0, 1).seconds[0] == pytest.approx(4 / RATE)
    assert roads.way(0, 2).seconds[0] == pytest.approx(1 / RATE)


def test_small_frames_do_not_overtake_large_ones():
    with shaped() as (a, b):
        for i in range(10):
            a.post(1, b"%d" % i, bytes(200_000 * (i % 2)))
        assert [bytes(event.header) for _, event in arrivals(b, 10, time.monotonic())] == [b"%d" % i for i in range(10)]


def test_a_break_is_told_after_what_was_sent_before_it():
    with shaped() as (a, b):
        start = time.monotonic()
        a.post(1, b"last words", b"x")
        a.close(1)
        (sent, first), (broke, second) = arrivals(b, 2, start)
        assert isinstance(first, Arrival)
        assert second == Broken(0)
        assert broke >= sent >= LATENCY - 1e-4


def test_a_frame_of_a_link_that_is_not_shaped_is_refused():
    wires = machine()
    raw, inner = MemoryFabric(2).links
    link = ShapedLink(inner, Roads(wires, np.arange(2), 1.0), Calendar(wires.nlinks))
    raw.connect(1, link.address)
    for header in (b"h", b"h" * 100, b"\xff" * 100):
        raw.post(1, header, b"")
        event = link.take()
        assert isinstance(event, Refused)
        assert "frame from rank 0 does not say when it is due; are its links shaped?" in str(event.error)


class Late:
    """A link below that keeps everything for a while longer than was asked for."""

    def __init__(self, link, seconds):
        self._link, self._seconds = link, seconds

    def __getattr__(self, name):
        return getattr(self._link, name)

    def wait(self, seconds):
        time.sleep(self._seconds)
        return False


def test_a_host_that_does_not_keep_up_is_found_out():
    wires = machine()
    a, b = MemoryFabric(2).links
    calendar, roads = Calendar(wires.nlinks), Roads(wires, np.arange(2), 1.0)
    sender, receiver = ShapedLink(a, roads, calendar), ShapedLink(Late(b, 5 * LATENCY), roads, calendar)
    sender.connect(1, b.address)
    sender.post(1, b"h", b"")
    arrivals(receiver, 1, time.monotonic())
    report = receiver.report()
    assert (report["frames"], report["on_time"]) == (1, 0)
    assert report["took"] > 2 * report["asked"]


def test_who_did_not_wait_says_nothing():
    with shaped() as (a, b):
        a.post(1, b"h", b"")
        time.sleep(2 * LATENCY)  # it computes
        assert b.take() is not None
        assert b.report()["frames"] == 0


def test_a_mesh_runs_on_it_and_feels_it():
    with shaped(below="memory") as links:
        book = dictionary()
        a, b = (Card(link, book, segment=1 << 20, window=4 << 20) for link in links)

        def attempt():
            start = time.monotonic()
            together(lambda: a.wait(a.send(1, bytes(2_000_000))), lambda: b.recv(0, 2_000_000))
            return [time.monotonic() - start]

        assert_soonest(attempt, LATENCY + 2_000_000 / RATE)
        a.close()
        b.close()


# The calendar


def test_reservations_add_up_between_processes(tmp_path):
    file, links, count = tmp_path / "links", np.array([1, 3]), 200

    def reserve():
        calendar = Calendar(4, file)
        for _ in range(count):
            calendar.reserve(links, np.array([1.0, 2.0]), 0.0)

    with forked(reserve) as one, forked(reserve) as two:
        assert exit_code(one) == exit_code(two) == 0
    calendar = Calendar(4, file)
    assert calendar.reserve(np.arange(4), np.zeros(4), 0.0) == 2 * count * 2.0
    assert calendar.reserve(np.array([1]), np.zeros(1), 0.0) == 2 * count
    calendar.close()
    calendar.close()


def test_one_that_is_stopped_in_the_middle_stops_nobody(tmp_path):
    calendar = Calendar(1, tmp_path / "links")
    holder = os.open(tmp_path / "links", os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    start = time.monotonic()
    assert calendar.reserve(np.array([0]), np.array([1.0]), 5.0) == 6.0
    assert time.monotonic() - start < 5
    os.close(holder)
    calendar.close()


def test_time_that_has_passed_is_not_given_away():
    calendar = Calendar(1)
    link, second = np.array([0]), np.ones(1)
    assert calendar.reserve(link, second, 10.0) == 11.0
    assert calendar.reserve(link, second, 10.5) == 12.0
    assert calendar.reserve(link, second, 20.0) == 21.0
