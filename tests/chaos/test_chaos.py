"""Chaos: random programs on random groups equal an oracle; with a rank killed or a call altered, everybody is told.

A program that goes wrong runs again as `pytest -n0 'tests/chaos/test_chaos.py::test_it_equals_the_oracle[17-zmq]'`.
Thousands more: `python tests/chaos/soak.py --help`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from chaos_oracle import brought, expected
from chaos_pool import End, Pool
from chaos_programs import KINDS, NUMPY, TORCH, Call, Fault, Program, program
from chaos_verdict import verdict

from superpod.interconnect.shm_link import possible

LINKS = ("zmq", "shm") if possible() else ("zmq",)
QUICK = 8  # of the programs run with the fast tests


def seeds(count: int) -> list[object]:
    """Seeds with links in turn; all but the first few are slow in sum."""
    each = [
        pytest.param(seed, LINKS[seed % len(LINKS)], id=f"{seed}-{LINKS[seed % len(LINKS)]}") for seed in range(count)
    ]
    slow = [pytest.param(*p.values, id=p.id, marks=pytest.mark.slow) for p in each[QUICK:]]
    return [*each[:QUICK], *slow]


@pytest.mark.parametrize(("seed", "link"), seeds(200))
def test_it_equals_the_oracle(pool: Pool, seed: int, link: str) -> None:
    made = program(seed, link)
    assert not (problem := verdict(made, pool.run(made))), f"{problem}\n{made}"


@pytest.mark.parametrize(("seed", "link"), seeds(50))
def test_everybody_is_told_who_did_what(pool: Pool, seed: int, link: str) -> None:
    made = program(seed, link, faulty=True)
    assert not (problem := verdict(made, pool.run(made))), f"{problem}\n{made}"


class TestTheGenerator:
    MANY = tuple(program(seed, "zmq") for seed in range(200))
    FAULTY = tuple(program(seed, "zmq", faulty=True) for seed in range(50))

    def test_a_seed_says_it_all(self) -> None:
        assert program(7, "zmq") == program(7, "zmq")
        assert program(7, "zmq") != program(8, "zmq")

    def test_it_makes_everything(self) -> None:
        for api in (NUMPY, TORCH):
            assert {call.kind for p in self.MANY if p.api == api for call in p.calls} == set(KINDS[api])
        assert {p.n for p in self.MANY} == set(range(2, 10))
        assert {call.async_op for p in self.MANY for call in p.calls} == {True, False}
        assert any(p.groups[i] != tuple(sorted(p.groups[i])) for p in self.MANY for i in range(len(p.groups)))

    def test_half_of_the_faults_are_deaths(self) -> None:
        deaths = [p for p in self.FAULTY if p.fault is not None and p.fault.instead is None]
        assert 15 <= len(deaths) <= 35

    def test_an_altered_call_is_another_one(self) -> None:
        for p in self.FAULTY:
            assert p.fault is not None
            original = p.calls[p.fault.number]
            assert p.fault.instead != original
            assert p.fault.rank in p.groups[original.group]

    def test_every_rank_makes_the_calls_of_its_groups_and_waits_at_most_once(self) -> None:
        for p in (*self.MANY, *self.FAULTY):
            for rank in range(p.n):
                made = list(p.mine(rank))
                wanted = {call.number for call in p.calls if rank in p.groups[call.group]}
                assert {call.number for call, _ in made} == wanted
                begun: set[int] = set()
                for call, due in made:
                    assert begun >= set(due)
                    begun = begun - set(due) | {call.number}

    def test_streams_keep_their_order_on_all_ranks(self) -> None:
        for p in self.MANY:
            for rank in range(p.n):
                last: dict[object, int] = {}
                for call, _ in p.mine(rank):
                    assert last.get(call.stream(), -1) < call.number
                    last[call.stream()] = call.number


class TestTheVerdict:
    """What would pass if it only looked whether something failed."""

    GOOD = (End(0, 3, "", "", 0.0, False), End(1, 2, "", "", 0.0, False))
    CALL = Call(0, 0, "all_reduce", "float32", 5, "sum")
    PROGRAM = Program(1, 2, NUMPY, "zmq", ((0, 1),), (CALL, Call(1, 0, "barrier", "bool", 1)))

    def faulty(self, fault: Fault, *ends: End) -> str:
        return verdict(replace(self.PROGRAM, fault=fault), ends)

    def test_all_is_well(self) -> None:
        assert verdict(self.PROGRAM, self.GOOD) == ""

    def test_a_wrong_result_and_a_rank_that_hangs(self) -> None:
        assert "rank 0: Wrong: x" in verdict(self.PROGRAM, [End(0, None, "Wrong", "x", 1.0, False), self.GOOD[1]])
        assert "rank 0 has not ended" in verdict(self.PROGRAM, [End(0, None, "", "", 0.0, False), self.GOOD[1]])

    def test_a_death(self) -> None:
        dead = End(1, None, "PeerLost", "rank 1 (pid 5) was killed by SIGKILL", 10.0, True)
        told = End(0, None, "PeerLost", "rank 1 (host a, pid 5) was killed by SIGKILL", 10.5, False)
        assert self.faulty(Fault(1, 0), told, dead) == ""
        assert "noticed nothing" in self.faulty(Fault(1, 0), self.GOOD[0], dead)
        assert "rank 0: PeerLost: rank 2" in self.faulty(Fault(1, 0), replace(told, text="rank 2 is gone"), dead)
        assert "9.0 s after the first" in self.faulty(Fault(1, 0), replace(told, time=19.0), dead)
        assert "was not killed" in self.faulty(Fault(1, 0), told, self.GOOD[1])

    def test_an_altered_call(self) -> None:
        fault = Fault(1, 0, replace(self.CALL, op="max"))
        calls = "all_reduce(5 × float32, sum) by tree (#0)", "all_reduce(5 × float32, max) by tree (#0)"
        text = "in group world: rank 0 called {} in f() at x.py:1, but rank 1 called {} in f() at x.py:2"
        told = [End(r, None, "CollectiveMismatch", text.format(*calls), 1.0, False) for r in range(2)]
        assert self.faulty(fault, *told) == ""
        for wrong in (text.format(*calls[::-1]), text.format(calls[0], calls[0]), text.replace("rank 1", "rank 2")):
            assert "rank 0: CollectiveMismatch" in self.faulty(fault, replace(told[0], text=wrong), told[1])
        assert "rank 0: PeerLost" in self.faulty(fault, replace(told[0], error="PeerLost"), told[1])


def test_the_oracle_by_hand() -> None:
    call = Call(4, 0, "reduce_scatter", "int16", 2, "max")
    assert expected(call, 1, 3).tolist() == [max(brought(call, r, 6)[i] for r in range(3)) for i in (2, 3)]  # type: ignore[union-attr]
    assert expected(Call(4, 0, "gather", "int16", 2, root=1), 0, 3) is None
    assert expected(Call(4, 0, "batch", "int16", 2), 0, 3).tolist() == brought(call, 2, 2).tolist()  # type: ignore[union-attr]
