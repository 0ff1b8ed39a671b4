"""The reader that proves a schedule right without running it on data.

Two parts. First the steps, each as a whole on arrays: every slot holds a datum, the ranks that have contributed to it,
and the order in which they were added. Then the programs that the ranks execute (verify_programs.py): they must say
what the steps say, and come to an end whatever the timing. Cost: arrays of world_size × slots; 0.1 ms a step and a few
µs a move of small worlds.

Contributions are bit sets that must be disjoint when they are added, so each is counted, not only seen. Where those
would be too large, every rank's contribution is a random 64-bit word and the sum mod 2^64 must be right: that finds the
same faults, but only at the end, and cannot say whose contribution is wrong.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from superpod.collectives import spec as specs
from superpod.collectives.schedule import BoolArray, IntArray, Schedule, Step
from superpod.collectives.spec import EVERYONE, NOTHING, Spec
from superpod.collectives.verify_order import Folds
from superpod.collectives.verify_programs import check_programs
from superpod.interconnect.errors import ScheduleError, ranks_text

WordArray = npt.NDArray[np.uint64]

_EXACT_BYTES = 256 << 20  # bit sets up to this size, random words beyond
_ALL_PROGRAMS = 64  # programs that are cut from the steps are run in worlds up to this size; given ones always


def verify(
    schedule: Schedule, spec: Spec | None = None, *, exact: bool | None = None, fixed_order: bool = False
) -> None:
    """Prove that `schedule` does what its collective asks for, whatever the timing.

    Args:
        spec: what it must do; by default what its collective's name says.
        exact: contributions as bit sets (True) or random words (False); by default bit sets if they fit into 256 MiB.
            Idempotent collectives (barrier) always take bit sets.
        fixed_order: it must add contributions up one by one, from rank 0's to the last rank's (see verify_order.py).
    Raises:
        ScheduleError: naming rank, chunk and step. Found are ranks and slots that do not exist; slots read before
            anything is in them; moves that join chunks of different sizes; additions of different data; contributions
            that are missing or counted twice; hazards inside a step; results that differ between ranks in the order
            of their terms, or with `fixed_order` from that of the ranks; programs that differ from the steps; sends
            and receives that do not match; deadlock.
        InvalidValue: there is no such collective.
    """
    spec = specs.of(schedule) if spec is None else spec
    _check_shape(schedule, spec)
    state = _State(schedule, spec, exact, Folds(schedule) if fixed_order else None)
    for index, step in enumerate(schedule.steps()):
        _check_ranges(schedule, index, step)
        state.apply(index, _slot_by_slot(step))
    state.check_result()
    if schedule.program is not None or schedule.world_size <= _ALL_PROGRAMS:
        check_programs(schedule)


def _check_shape(schedule: Schedule, spec: Spec) -> None:
    n, nchunks = schedule.world_size, schedule.nchunks
    if spec.world_size != n:
        raise ScheduleError(f"world_size={n} of the schedule must be the spec's: {spec.world_size}")
    if nchunks % spec.nblocks:
        raise ScheduleError(f"nchunks={nchunks} must be a multiple of world_size={n}: {spec.collective} has n blocks")
    if schedule.nbanks <= spec.result:
        raise ScheduleError(f"nbanks={schedule.nbanks} must be at least 2: {spec.collective} has input and output")


def _check_ranges(schedule: Schedule, index: int, step: Step) -> None:
    n, nchunks = schedule.world_size, schedule.nchunks
    no_rank = (step.src < 0) | (step.src >= n) | (step.dst < 0) | (step.dst >= n)
    no_slot = step.count < 1
    for first in (step.first, step.to):
        last = first + step.count - 1
        no_slot |= (first < 0) | (last >= schedule.nslots) | (first // nchunks != last // nchunks)
    for m in np.flatnonzero(no_rank | no_slot)[:1]:
        what = f"moves {step.count[m]} slots from {step.first[m]} to slot {step.to[m]} of rank {step.dst[m]}"
        rule = (
            f"ranks are 0 to {n - 1}" if no_rank[m] else f"a range lies in one of {schedule.nbanks} × {nchunks} slots"
        )
        raise ScheduleError(f"{schedule.where(index, int(step.src[m]), int(step.first[m]))}: {what}; {rule}")


def _slot_by_slot(step: Step) -> Step:
    """The same with one move a slot, in the order in which a rank applies them: local moves, then what it receives."""
    local_first = np.argsort(step.src != step.dst, kind="stable")
    count = step.count[local_first]
    row = np.repeat(local_first, count)
    offset = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    one = np.ones_like(row)
    return Step(step.src[row], step.dst[row], step.first[row] + offset, one, step.to[row] + offset, step.reduce[row])


def _rounds(target: IntArray) -> list[IntArray]:
    """Rows in rounds that write no slot twice; rows that write the same one keep their order."""
    order = np.argsort(target, kind="stable")
    place = np.arange(len(target))
    new = np.append(True, np.diff(target[order]) != 0)
    turn = np.empty_like(place)
    turn[order] = place - np.maximum.accumulate(np.where(new, place, 0))
    by_turn = np.argsort(turn, kind="stable")
    return np.split(by_turn, np.flatnonzero(np.diff(turn[by_turn])) + 1)


class _State:
    """What every slot of every rank holds. Flat: slot s of rank r is entry r · nslots + s."""

    def __init__(self, schedule: Schedule, spec: Spec, exact: bool | None, folds: Folds | None) -> None:
        n, nchunks, nslots = schedule.world_size, schedule.nchunks, schedule.nslots
        nwords = -(-n // 64)
        fits = n * nslots * nwords * 8 <= _EXACT_BYTES
        self.schedule, self.spec, self.folds = schedule, spec, folds
        self.exact = spec.idempotent or (fits if exact is None else exact)
        before, self.after = _chunks(spec.before, nchunks), _chunks(spec.after, nchunks)
        datum = np.full((n, nslots), NOTHING)
        datum[:, :nchunks] = before
        sizes = np.tile(np.arange(nchunks), (n, schedule.nbanks))  # equal numbers: equal sizes
        if spec.result:  # input block d of rank r has the size of output block r of rank d
            sizes = np.tile(before, (1, schedule.nbanks))
            sizes[:, nchunks : 2 * nchunks] = self.after
        self.datum: IntArray = datum.ravel()
        self.sizes: IntArray = sizes.ravel()
        self.nwords = nwords if self.exact else 1
        owner = np.repeat(np.arange(n), nslots)
        self.terms = self._contribution(owner, self.datum)
        self.order = _word(owner, self.datum)
        self.last = np.full(n * nslots, -1, np.int32)  # the step that wrote it last

    def _contribution(self, rank: IntArray, datum: IntArray) -> WordArray:
        """Contributions of single ranks to data, shape (m, nwords)."""
        if not self.exact:
            return _word(rank, datum)[:, None]
        bits = np.zeros((len(rank), self.nwords), np.uint64)
        bits[np.arange(len(rank)), rank // 64] = np.uint64(1) << (rank % 64).astype(np.uint64)
        return bits

    def apply(self, index: int, step: Step) -> None:
        """One step, slot by slot."""
        if not len(step):
            return
        nslots = self.schedule.nslots
        source, target = step.src * nslots + step.first, step.dst * nslots + step.to
        self._check_data(index, source, target, step.reduce)
        self._check_hazards(index, source, target, step)
        if self.folds is not None:
            self.folds.read(source, step)
        datum, terms, order = self.datum[source], self.terms[source], self.order[source]  # the state before the step
        for rows in _rounds(target):
            copies, adds = rows[~step.reduce[rows]], rows[step.reduce[rows]]
            into = target[copies]
            self.datum[into], self.terms[into], self.order[into] = datum[copies], terms[copies], order[copies]
            into = target[adds]
            self.terms[into] = self._add(index, into, self.terms[into], terms[adds])
            self.order[into] = _mix(self.order[into] + order[adds])  # a + b = b + a, but (a + b) + c is another
            if self.folds is not None and (wrong := self.folds.write(target, copies, adds)) is not None:
                raise self._error(index, target[wrong[0]], wrong[1])
        self.last[target] = index

    def _add(self, index: int, into: IntArray, ours: WordArray, theirs: WordArray) -> WordArray:
        if not self.exact:
            return ours + theirs
        if not self.spec.idempotent:
            twice = ours & theirs
            for m in np.flatnonzero(twice.any(axis=1))[:1]:
                raise self._error(index, into[m], f"counts the contribution of {_ranks(twice[m])} twice")
        return ours | theirs

    def _check_data(self, index: int, source: IntArray, target: IntArray, reduce: BoolArray) -> None:
        mine, theirs = self.datum[target], self.datum[source]
        for m in np.flatnonzero(theirs == NOTHING)[:1]:
            raise self._error(index, source[m], "is read, but nothing is in it yet")
        for m in np.flatnonzero(reduce & (mine == NOTHING))[:1]:
            raise self._error(index, target[m], "is added to, but nothing is in it yet")
        for m in np.flatnonzero(reduce & (mine != theirs))[:1]:
            raise self._error(index, target[m], f"datum {theirs[m]} is added to datum {mine[m]}")
        if not self.schedule.equal_blocks:
            for m in np.flatnonzero(self.sizes[source] != self.sizes[target])[:1]:
                origin = divmod(int(source[m]), self.schedule.nslots)
                text = f"takes slot {origin[1]} of rank {origin[0]}, whose size differs when blocks are unequal"
                raise self._error(index, target[m], text + "; move like to like, or declare equal_blocks=True")

    def _check_hazards(self, index: int, source: IntArray, target: IntArray, step: Step) -> None:
        order = np.argsort(target, kind="stable")
        a, b = order[:-1], order[1:]
        for m in np.flatnonzero((target[a] == target[b]) & ~(step.reduce[a] & step.reduce[b]))[:1]:
            raise self._error(index, target[a[m]], "hazard: is written twice in this step, at least once overwritten")
        local = step.src == step.dst
        for m in np.flatnonzero(np.isin(source[local], target[local]))[:1]:
            raise self._error(index, source[local][m], "hazard: one local move of this step reads what another writes")

    def check_result(self) -> None:
        """Every slot that matters must hold what the spec says."""
        schedule, spec = self.schedule, self.spec
        rank, chunk = np.nonzero(self.after != NOTHING)
        entry = rank * schedule.nslots + spec.result * schedule.nchunks + chunk
        datum = self.after[rank, chunk]
        for m in np.flatnonzero(self.datum[entry] != datum)[:1]:
            held = self.datum[entry[m]]
            text = "nothing" if held == NOTHING else f"datum {held}"
            raise self._error(None, entry[m], f"at the end holds {text} instead of datum {datum[m]}")
        origin = spec.origin[rank, chunk // (schedule.nchunks // spec.nblocks)]
        needed = self._needed(origin, datum)
        for m in np.flatnonzero((self.terms[entry] != needed).any(axis=1))[:1]:
            raise self._error(None, entry[m], self._difference(self.terms[entry[m]], needed[m]))
        if not spec.idempotent:
            _, first, group = np.unique(datum, return_index=True, return_inverse=True)
            for m in np.flatnonzero(self.order[entry] != self.order[entry[first[group]]])[:1]:
                text = f"at the end is summed in another order than rank {rank[first[group[m]]]}'s: results may differ"
                raise self._error(None, entry[m], text + " in the last bits")

    def _needed(self, origin: IntArray, datum: IntArray) -> WordArray:
        """What each result must be made of, shape (m, nwords)."""
        n = self.schedule.world_size
        data, which = np.unique(datum, return_inverse=True)
        everyone = np.zeros((len(data), self.nwords), np.uint64)
        for r in range(n):
            everyone += self._contribution(np.full(len(data), r), data)
        single = self._contribution(np.maximum(origin, 0), datum)
        return np.where((origin == EVERYONE)[:, None], everyone[which], single)

    def _difference(self, terms: WordArray, needed: WordArray) -> str:
        if not self.exact:
            return "at the end its contributions do not add up to exactly one of each"
        missing, extra = needed & ~terms, terms & ~needed
        if missing.any():
            return f"at the end the contribution of {_ranks(missing)} is missing"
        return f"at the end the contribution of {_ranks(extra)} is in it and must not be"

    def _error(self, index: int | None, entry: np.int64, text: str) -> ScheduleError:
        """`index` None: name the step that wrote the slot last."""
        rank, slot = divmod(int(entry), self.schedule.nslots)
        step = int(self.last[entry]) if index is None else index
        return ScheduleError(f"{self.schedule.where(step, rank, slot)}: {text}")


def _chunks(blocks: IntArray, nchunks: int) -> IntArray:
    """Data of blocks → data of chunks: each block's are numbered through."""
    each = nchunks // blocks.shape[1]
    data = np.repeat(blocks, each, axis=1)
    return np.where(data == NOTHING, NOTHING, data * each + np.arange(nchunks) % each)


def _ranks(bits: WordArray) -> str:
    return ranks_text(np.flatnonzero(np.unpackbits(bits.astype("<u8").view(np.uint8), bitorder="little")).tolist())


def _mix(x: WordArray) -> WordArray:
    """A 64-bit number's bits scattered; the finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _word(rank: IntArray, datum: IntArray) -> WordArray:
    """A word for each rank's contribution to a datum: random, but the same in every run."""
    return _mix(_mix(rank.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)) + datum.astype(np.uint64))
