"""Aware of hosts: layouts, schedules for them, what goes between hosts, and which algorithm is chosen."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpod.collectives import algorithms, hosts
from superpod.collectives.hosts import Layout
from superpod.collectives.schedule import ROOTED, Schedule
from superpod.collectives.select import Selector
from superpod.collectives.select_hosts import BETWEEN_HOSTS, MAX, between_hosts
from superpod.collectives.verify import verify
from superpod.interconnect.env import COLLECTIVES
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.host import Address

HOSTED = [(c, name) for c in COLLECTIVES for name in algorithms.names(c) if algorithms.get(c, name).hosted]
SHAPED = [(c, name) for c in COLLECTIVES for name in algorithms.names(c) if algorithms.get(c, name).shaped]
SIZES = [(1,), (2,), (1, 1), (4, 4), (3, 1), (1, 3), (2, 3, 4), (1, 5, 1, 2), (8, 8, 4), (7, 1, 1), (2,) * 9]

every = pytest.mark.parametrize(("collective", "name"), HOSTED)


def layout_of(sizes: tuple[int, ...]) -> Layout:
    return Layout([host for host, k in enumerate(sizes) for _ in range(k)])


def roots(collective: str, n: int) -> range:
    return range(n if collective in ROOTED else 1)


def leaving(schedule: Schedule, layout: Layout) -> dict[int, Fraction]:
    """Host → what it sends to others, as a multiple of S."""
    places, out = np.array(layout.hosts), dict.fromkeys(range(layout.count), Fraction(0))
    for step in schedule.steps():
        away = places[step.src] != places[step.dst]
        for src, count in zip(step.src[away], step.count[away], strict=True):
            out[int(places[src])] += Fraction(int(count), schedule.nchunks)
    return out


class TestSchedules:
    @every
    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    def test_are_right_for_any_hosts(self, collective: str, name: str, sizes: tuple[int, ...]) -> None:
        for root in roots(collective, sum(sizes)):
            schedule = layout_of(sizes).build(collective, name, root)
            verify(schedule)
            assert all(len(step) for step in schedule.steps())

    @given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.sampled_from(HOSTED), st.data())
    @settings(deadline=None)
    def test_are_right_for_hosts_of_any_size(self, sizes: list[int], which: tuple[str, str], data: Any) -> None:
        root = data.draw(st.sampled_from(roots(which[0], sum(sizes))))
        verify(layout_of(tuple(sizes)).build(*which, root))

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.sampled_from(HOSTED), st.data())
    @settings(deadline=None)
    def test_are_right_for_ranks_anywhere(self, hosts: list[int], which: tuple[str, str], data: Any) -> None:
        layout = Layout.of([str(host) for host in hosts])
        verify(layout.build(*which, data.draw(st.sampled_from(roots(which[0], len(hosts))))))

    @pytest.mark.parametrize(("collective", "name"), SHAPED)
    def test_those_with_a_shape_take_that_of_equal_hosts(self, collective: str, name: str) -> None:
        schedule = layout_of((3, 3)).build(collective, name)
        verify(schedule)
        shaped = algorithms.get(collective, name).build(6, shape=(3, 2))
        assert str(schedule) == str(shaped)

    @pytest.mark.parametrize("sizes", [(0, 2), (1, 2), (2, 2, -1)])
    def test_hosts_that_are_not_the_world(self, sizes: tuple[int, ...]) -> None:
        for collective, name in HOSTED:
            args = (4, 0) if collective in ROOTED else (4,)
            with pytest.raises(InvalidValue, match=r"hosts=\(.*\) must have world_size=4 cards together"):
                algorithms.get(collective, name).build(*args, hosts=sizes)


class TestBetweenHosts:
    """What leaves a host, as the algorithms' files say it."""

    @pytest.mark.parametrize("sizes", [s for s in SIZES if len(s) > 1], ids=str)
    def test_rails_send_the_least(self, sizes: tuple[int, ...]) -> None:
        layout, n, m = layout_of(sizes), sum(sizes), len(sizes)
        sent = leaving(layout.build("all_reduce", "rails"), layout)
        assert sent == dict.fromkeys(range(m), 2 * Fraction(m - 1, m))
        gathered = leaving(layout.build("all_gather", "rails"), layout)
        assert gathered == {host: (m - 1) * Fraction(k, n) for host, k in enumerate(sizes)}
        scattered = leaving(layout.build("reduce_scatter", "rails"), layout)
        assert scattered == {host: Fraction(n - k, n) for host, k in enumerate(sizes)}

    @pytest.mark.parametrize("sizes", [s for s in SIZES if len(s) > 1], ids=str)
    def test_rails_of_all_to_all_send_the_least_in_few_messages(self, sizes: tuple[int, ...]) -> None:
        layout, n = layout_of(sizes), sum(sizes)
        schedule, places = layout.build("all_to_all", "rails"), np.array(layout.hosts)
        assert leaving(schedule, layout) == {host: Fraction(k * (n - k), n) for host, k in enumerate(sizes)}
        messages = np.zeros(len(sizes), np.int64)
        for step in schedule.steps():
            away = places[step.src] != places[step.dst]
            np.add.at(messages, places[step.src[away]], 1)
        assert messages.tolist() == [n - k for k in sizes]  # direct exchange: k times as many

    @pytest.mark.parametrize("sizes", [s for s in SIZES if len(s) > 1], ids=str)
    def test_leaders_send_few_arrays(self, sizes: tuple[int, ...]) -> None:
        layout, m = layout_of(sizes), len(sizes)
        p = 1 << m.bit_length() - 1
        sent = sum(leaving(layout.build("all_reduce", "leaders"), layout).values())
        assert sent == p * (p.bit_length() - 1) + 2 * (m - p)
        for collective in ("broadcast", "reduce"):
            for root in range(sum(sizes)):
                assert sum(leaving(layout.build(collective, "leaders", root), layout).values()) == m - 1

    @pytest.mark.parametrize("collective", ["gather", "scatter"])
    @pytest.mark.parametrize("sizes", [s for s in SIZES if len(s) > 1], ids=str)
    def test_leaders_gather_and_scatter_in_one_message_a_host(self, collective: str, sizes: tuple[int, ...]) -> None:
        layout, n, places = layout_of(sizes), sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
        for root in range(n):
            schedule = layout.build(collective, "leaders", root)
            far = n - sizes[places[root]]
            assert sum(leaving(schedule, layout).values()) == Fraction(far, n)
            away = [int(np.count_nonzero(places[s.src] != places[s.dst])) for s in schedule.steps()]
            assert sum(away) == len(sizes) - 1

    def test_only_leaders_speak_to_other_hosts(self) -> None:
        layout = layout_of((3, 4, 2))
        places = np.array(layout.hosts)
        for src, dst in layout.build("broadcast", "leaders", 5).links():
            assert places[src] == places[dst] or {src, dst} <= {0, 5, 7}


class TestLayouts:
    def test_of_names(self) -> None:
        layout = Layout.of(["b", "a", "b", "c", "a"])
        assert (layout.hosts, layout.sizes, layout.count) == ((0, 1, 0, 2, 1), (2, 2, 1), 3)
        assert layout.order == (0, 2, 1, 4, 3)
        assert not layout.in_order
        assert str(layout) == "3 hosts of 2 + 2 + 1 cards"

    def test_blocks_keep_their_ranks(self) -> None:
        """Where ranks of a host are no neighbours, what has a block for each rank goes by the flat algorithm."""
        mixed, sorted_ = Layout([0, 1, 0, 1]), Layout([0, 0, 1, 1])
        assert sorted_.can("all_gather", "rails")
        assert not mixed.can("all_gather", "rails")
        assert mixed.can("all_reduce", "rails")
        assert not mixed.can("all_reduce", "ring")
        assert str(mixed.build("all_reduce", "ring")) == str(algorithms.build("all_reduce", "ring", 4))


class TestFindingOut:
    def test_the_others_share_the_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first rank waits for all of them together no longer than for one."""
        now, given_seconds = [100.0], []

        def find(rank: int, group: object, seconds: float) -> str:
            given_seconds.append(seconds)
            now[0] += 4.0  # it comes late
            return near

        near = Address("ipc:///x", "00", "a", "").text()
        monkeypatch.setattr(hosts, "time", SimpleNamespace(monotonic=lambda: now[0]))
        monkeypatch.setattr(hosts, "split", lambda address: (address, "far"))
        mesh = SimpleNamespace(rank=0, link=SimpleNamespace(address=near), find=find, publish=lambda *what: None)
        group = SimpleNamespace(ident=1, life=0)
        layout = hosts.OnHosts(mesh, group, range(4), 10.0).layout()  # type: ignore[arg-type]
        assert layout is not None
        assert layout.hosts == (0, 0, 0, 0)
        assert given_seconds == [10.0, 6.0, 2.0]


class TestSelection:
    def choose(self, collective: str, nbytes: int, layout: Layout, **how: Any) -> str:
        selector = Selector(how.pop("overrides", {}), **how)
        return selector.choose(collective, nbytes, len(layout.hosts), layout=layout).algorithm

    @pytest.mark.parametrize("collective", COLLECTIVES)
    @pytest.mark.parametrize("sizes", [(4, 4), (8, 8, 8, 8), (3, 1), (2, 5, 1)], ids=str)
    def test_every_choice_can_be_built(self, collective: str, sizes: tuple[int, ...]) -> None:
        layout = layout_of(sizes)
        for nbytes in (0, 8, 4096, 1 << 20, 1 << 30):
            name = self.choose(collective, nbytes, layout)
            verify(layout.build(collective, name))

    def test_size_counts(self) -> None:
        names = [self.choose("all_reduce", nbytes, layout_of((4, 4))) for nbytes in (8, 64 << 20)]
        assert names == ["leaders", "rails"]

    @pytest.mark.parametrize("sizes", [(8,), (1,) * 8])
    def test_one_host_and_hosts_of_one_card_are_flat(self, sizes: tuple[int, ...]) -> None:
        layout = layout_of(sizes)
        assert all(between_hosts(c, 1 << 20, layout, equal_blocks=True) is None for c in COLLECTIVES)
        assert self.choose("all_reduce", 8, layout) == Selector({}).choose("all_reduce", 8, 8).algorithm

    def test_boards_are_for_one_host(self) -> None:
        flat = self.choose("gather", 8, layout_of((4, 4)), board=True)
        assert flat == Selector({}).choose("gather", 8, 8).algorithm

    def test_all_to_all_goes_in_rails_while_messages_count(self) -> None:
        names = [self.choose("all_to_all", nbytes, layout_of((4, 4))) for nbytes in (8, 64 << 20)]
        assert names == ["rails", "direct"]
        unequal = Selector({}).choose("all_to_all", 0, 8, equal_blocks=False, layout=layout_of((4, 4)))
        assert unequal.algorithm == "direct"
        assert self.choose("all_to_all", 8, Layout([0, 1, 0, 1])) == "direct"

    def test_what_the_user_says_comes_first(self) -> None:
        assert self.choose("all_reduce", 8, layout_of((4, 4)), overrides={"all_reduce": "ring"}) == "ring"

    def test_a_fixed_order_comes_before_hosts(self) -> None:
        name = self.choose("all_reduce", 8, layout_of((4, 4)), deterministic=True)
        assert algorithms.get("all_reduce", name).fixed_order

    def test_the_reason_names_the_hosts(self) -> None:
        choice = Selector({}).choose("barrier", 1, 8, layout=layout_of((5, 3)))
        assert choice.reason == "built-in table for 2 hosts of 5 + 3 cards, any size"

    def test_thresholds_ascend(self) -> None:
        for rules in BETWEEN_HOSTS.values():
            assert all(a.nbytes < b.nbytes for a, b in pairwise(rules))
            assert rules[-1].nbytes == MAX
