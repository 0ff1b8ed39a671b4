"""What is to be measured: checked once before any card starts, and handed to the cards as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from superpod.benchmarks.cases import CASES, Case
from superpod.benchmarks.data import DTYPES, contribution
from superpod.benchmarks.point_to_point import EVERY, POINT_TO_POINT
from superpod.collectives import algorithms
from superpod.collectives.operations import OPERATIONS, operation
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.units import parse_size, size_text

AUTO = "auto"  # the algorithm that superpod selects
AVERAGES = ("rank 0's time", "mean of the ranks' times", "fastest rank's time", "slowest rank's time")
_NAMES = {"half": "float16", "float": "float32", "double": "float64"}  # as nccl-tests call them
_MIN_ITERS = 3  # fewer have no median
_MOST_SIZES = 10_000  # of one table


@dataclass(frozen=True, slots=True)
class Series:
    """One line of sizes: all that stays the same while the size grows."""

    collective: str
    algorithm: str
    dtype: str
    op: str

    @property
    def case(self) -> type[Case]:
        return EVERY[self.collective]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the cards need to know.

    Attributes:
        series: what to measure, in this order.
        sizes: S in bytes, rounded down to whole elements (and blocks) where it is used.
        iters, warmup: at most so many timed and untimed calls of one size.
        budget: longest time that the timed calls of one size may take [s]; at least three are timed all the same.
        average: index into AVERAGES: which of the ranks' mean times is printed.
    """

    series: tuple[Series, ...]
    sizes: tuple[int, ...]
    root: int = 0
    iters: int = 20
    warmup: int = 5
    check: bool = True
    average: int = 3
    budget: float = 1.0

    def counts(self, series: Series, world_size: int) -> tuple[int, ...]:
        """How many elements S has, from size to size; sizes that come to nothing or to the same are left out."""
        if series.collective == "barrier":
            return (0,)
        part = world_size if series.case.blocks else 1
        counts = (nbytes // np.dtype(series.dtype).itemsize // part * part for nbytes in self.sizes)
        return tuple(dict.fromkeys(count for count in counts if count))

    def repeats(self, seconds: float) -> tuple[int, int]:
        """(warm-up calls, timed calls) of a call that takes `seconds`."""
        affordable = int(self.budget / seconds)
        warmup = min(self.warmup, max(affordable // 4, 1))
        return warmup, min(self.iters, max(affordable, _MIN_ITERS))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        fields["series"] = tuple(Series(**series) for series in fields["series"])
        fields["sizes"] = tuple(fields["sizes"])
        return Plan(**fields)


def sizes(low: int, high: int, *, factor: int | None, step: int | None) -> tuple[int, ...]:
    """S from `low` to `high` bytes, each `factor` times or `step` bytes above the one before. Raises InvalidValue."""
    if factor is not None and step is not None:
        raise InvalidValue(f"-f {factor} and -i {step} exclude each other: sizes either multiply or add; give one")
    if low < 1:
        raise InvalidValue(f"-b {low} must be at least 1 byte")
    if high < low:
        raise InvalidValue(f"-e {size_text(high)} must not be below -b {size_text(low)}")
    if step is not None:
        if step < 1:
            raise InvalidValue(f"-i {step} must be at least 1 byte, or the sizes never reach -e")
        if (high - low) // step >= _MOST_SIZES:
            raise InvalidValue(
                f"-i {size_text(step)} makes more than {_MOST_SIZES} sizes up to {size_text(high)}; take a larger one, "
                "or -f"
            )
        return tuple(range(low, high + 1, step))
    factor = 2 if factor is None else factor
    if factor < 2:
        raise InvalidValue(f"-f {factor} must be at least 2, or the sizes never reach -e; for one size let -b equal -e")
    found = [low]
    while found[-1] * factor <= high:
        found.append(found[-1] * factor)
    return tuple(found)


def listed_sizes(text: str) -> tuple[int, ...]:
    """S in bytes from a list such as "8,64K,1M", in the order given. Raises InvalidValue."""
    found = tuple(parse_size(part) for part in text.split(","))
    if min(found) < 1:
        raise InvalidValue(f"--sizes {text} must be sizes of at least 1 byte, such as 8,64K,1M")
    return found


def worlds(text: str) -> tuple[int, ...]:
    """Numbers of cards from "8" or "2,8,64". Raises InvalidValue."""
    try:
        return tuple(int(n) for n in text.split(","))
    except ValueError:
        raise InvalidValue(f"-n {text!r} must be a number of cards, or a list such as 2,8,64") from None


def collectives(text: str) -> tuple[str, ...]:
    """The collectives in "all_reduce,broadcast" or "all". Raises InvalidValue listing the right names.

    "all" leaves out what goes on between two ranks only.
    """
    return tuple(CASES) if text == "all" else choose("collective", text, tuple(EVERY))


def series(names: tuple[str, ...], *, algorithm: str, dtype: str, op: str) -> tuple[Series, ...]:
    """Every combination of the lists that makes sense. Raises InvalidValue for a name that does not exist, and where
    a combination was asked for by name but makes none: bits of floats, ring for a broadcast.
    """
    dtypes = choose("-d", dtype, DTYPES, _NAMES)
    ops = choose("-o", op, OPERATIONS)
    found = []
    for name in names:
        for chosen in _algorithms(name, algorithm):
            pairs = _pairs(dtypes, ops, strict="all" not in (dtype, op)) if EVERY[name].reduces else _plain(dtypes)
            found += [Series(name, chosen, *pair) for pair in (pairs if name != "barrier" else [("uint8", "none")])]
    return tuple(found)


def _algorithms(collective: str, text: str) -> tuple[str, ...]:
    if not EVERY[collective].chooses:
        if text not in (AUTO, "all"):
            raise InvalidValue(f"--algorithm {text} means nothing for {collective}, which has none; leave it out")
        return (AUTO,)
    known = tuple(algorithms.names(collective))
    return choose(f"--algorithm for {collective}:", text, (AUTO, *known)) if text != "all" else known


def _pairs(dtypes: tuple[str, ...], ops: tuple[str, ...], *, strict: bool) -> Iterator[tuple[str, str]]:
    for dtype in dtypes:
        for op in ops:
            try:
                operation(op, np.dtype(dtype))
            except InvalidValue:
                if strict:
                    raise
            else:
                yield dtype, op


def _plain(dtypes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    return ((dtype, "none") for dtype in dtypes)


def player_name(algorithm: str) -> str:
    """What superpod with this algorithm is called where it is one of several programs."""
    return "superpod" if algorithm == AUTO else f"superpod:{algorithm}"


def choose(option: str, text: str, known: tuple[str, ...], aliases: dict[str, str] | None = None) -> tuple[str, ...]:
    """The names in a comma-separated list, or all that are known."""
    if text == "all":
        return known
    names = tuple((aliases or {}).get(name, name) for name in text.split(","))
    for name in names:
        if name not in known:
            raise InvalidValue(f"{option} {name!r} is unknown; choose from {', '.join(known)}, or all")
    return names


def check_world(plan: Plan, world_size: int, free_memory: int) -> None:
    """Raises InvalidValue when `world_size` cards cannot carry the plan out. `free_memory` in bytes."""
    check_cards(world_size, max(plan.sizes), free_memory)
    if not 0 <= plan.root < world_size:
        raise InvalidValue(f"-r {plan.root} must be a rank: 0 to {world_size - 1} with -n {world_size}")
    for one in plan.series:
        if one.case.reduces:
            contribution(0, op=one.op, dtype=np.dtype(one.dtype), world_size=world_size)
        elif one.collective in ("sendrecv", *POINT_TO_POINT) and world_size == 1:
            raise InvalidValue(f"{one.collective} needs at least 2 cards: -n 1 leaves nobody to send to")
        if not plan.counts(one, world_size):
            least = np.dtype(one.dtype).itemsize * (world_size if one.case.blocks else 1)
            raise InvalidValue(
                f"-e {max(plan.sizes)} is less than one {one.dtype} for each card: "
                f"{one.collective} on {world_size} cards needs -e {least} or more"
            )


def check_cards(world_size: int, nbytes: int, free_memory: int) -> None:
    """Raises InvalidValue when `world_size` cards with arrays of `nbytes` do not fit into `free_memory` bytes."""
    if world_size < 1:
        raise InvalidValue(f"-n {world_size} must be at least 1 card")
    needed = 3 * world_size * nbytes  # send and receive buffer, and what is under way
    if needed > free_memory:
        raise InvalidValue(
            f"{size_text(nbytes)} on {world_size} cards need about {size_text(needed)} of memory, "
            f"{size_text(free_memory)} are free; choose a smaller size or fewer cards"
        )
