"""A machine as data: levels of cards and what joins them, with latency [s] and bandwidth [B/s]. No wires, no clock.

Words. A *level* joins `size` units of the level below into one; a unit of the lowest level is a card. Cards are
numbered so that neighbours are close: card c has coordinate (c // cards of a unit) mod size at a level. What joins the
units:

    full_mesh   every card has a link to the card of its own place in each of the other units
    ring        every card has a link to the card of its own place in the next and in the last unit
    torus       several rings in one table: `shape`
    switch      everybody below reaches everybody: through a port of each card (default), or, with `trunk`, through
                one trunk of each unit, behind the switches below
    fat_tree    a switch of `tiers` tiers: passing it takes 2·tiers − 1 hops

A bandwidth is each way and of one port; a link has `ports` of them. 1 GB/s = 1e9 B/s. A machine that is no levels at
all lists its links (`Cable`). There are up to MOST_CARDS cards and MOST_LINKS links. Where figures come from is said by
marks: A read in a primary source, B secondary, D arithmetic from other figures, V a vendor's target, and "assumed".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from superpod.interconnect.errors import InvalidValue

MOST_CARDS, MOST_LINKS = 1 << 20, 1 << 24  # a number for every link is 128 MiB, and there are several of those
KINDS = ("full_mesh", "ring", "torus", "switch", "fat_tree")
ROUTINGS = ("detour", "shortest", "all_paths")
MARKS = ("A", "fitted", "B", "D", "V", "assumed")
"""From the surest to the least sure; fitted: to measured points, by superpod-sim calibrate."""


@dataclass(frozen=True, slots=True)
class Level:
    """What joins `size` units of the level below. Times in s, rates in B/s.

    Attributes:
        bandwidth: each way, of one port; usable are bandwidth · ports · efficiency / oversubscription.
        latency: what passing this level adds; of a switch, for the whole way in and out.
        trunk: of a switch: one trunk a unit, reached through the switches below, instead of a port a card.
        planes: of a switch: it consists of so many independent ones, over which traffic is spread evenly; one of them
            can be cut.
        marks: "bandwidth", "latency", "size" → how sure the figure is.
    """

    name: str
    kind: str
    size: int
    bandwidth: float
    latency: float = 0.0
    ports: int = 1
    efficiency: float = 1.0
    oversubscription: float = 1.0
    trunk: bool = False
    planes: int = 1
    tiers: int = 1
    marks: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"level {self.name!r}"
        if self.kind not in KINDS or self.kind == "torus":
            raise InvalidValue(f"{where}: kind={self.kind!r} must be one of {', '.join(KINDS)}")
        for name, least in (("size", 2), ("ports", 1), ("planes", 1), ("tiers", 1)):
            if getattr(self, name) < least:
                raise InvalidValue(f"{where}: {name}={getattr(self, name)} must be at least {least}")
        for name in ("bandwidth", "efficiency"):
            if not getattr(self, name) > 0:
                raise InvalidValue(f"{where}: {name}={getattr(self, name)} must be above 0, or its cards have no link")
        if self.latency < 0:
            raise InvalidValue(f"{where}: latency={self.latency} must not be negative")
        if self.oversubscription < 1:
            raise InvalidValue(
                f"{where}: oversubscription={self.oversubscription} must be at least 1 (1: non-blocking)"
            )
        if self.trunk and not self.switched:
            raise InvalidValue(f"{where}: trunk=true is for switches; a {self.kind} joins cards one by one")

    @property
    def switched(self) -> bool:
        return self.kind in ("switch", "fat_tree")

    @property
    def rate(self) -> float:
        """What one link of this level carries each way [B/s]."""
        return self.bandwidth * self.ports * self.efficiency / self.oversubscription

    @property
    def peers(self) -> int:
        """Links that a card has at this level, or a unit with a trunk."""
        if self.switched:
            return 1
        return self.size - 1 if self.kind == "full_mesh" else 2


@dataclass(frozen=True, slots=True)
class Cable:
    """Links of one class between named nodes. Digits are cards, all other names switches; each pair goes both ways."""

    name: str
    bandwidth: float
    latency: float
    pairs: tuple[tuple[str, str], ...]
    marks: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.bandwidth > 0 or self.latency < 0:
            raise InvalidValue(
                f"links {self.name!r}: bandwidth={self.bandwidth} must be above 0 and latency={self.latency} at least 0"
            )
        if not self.pairs:
            raise InvalidValue(f'links {self.name!r} have no pairs; list them: pairs = [["0", "1"], ["1", "switch"]]')


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a library sends messages of some sizes; a call takes the protocol that is fastest for it.

    A call takes call + Σ over its steps of step + the way + x + 2·segment^(1−ramp)·x^ramp, with x [s] the time of the
    bytes at full rate. The last term is what cutting a message into segments costs: with ramp = 1/2, exactly the best
    compromise between a cost of `segment` for each one and waiting for the last.

    Attributes:
        call, step, segment: seconds.
        efficiency: share of the links' rate that it reaches.
    """

    name: str = "plain"
    call: float = 0.0
    step: float = 0.0
    segment: float = 0.0
    ramp: float = 0.5
    efficiency: float = 1.0
    mark: str = "assumed"

    def __post_init__(self) -> None:
        for name in ("call", "step", "segment"):
            if getattr(self, name) < 0:
                raise InvalidValue(f"protocol {self.name!r}: {name}={getattr(self, name)} must not be negative")
        if not 0 < self.ramp < 1:
            raise InvalidValue(
                f"protocol {self.name!r}: ramp={self.ramp} must lie between 0 and 1; 0.5 is the usual one"
            )
        if not self.efficiency > 0:
            raise InvalidValue(f"protocol {self.name!r}: efficiency={self.efficiency} must be above 0")


@dataclass(frozen=True, slots=True)
class Spares:
    """`count` spare cards in every unit that the level `level` makes; one in use is a hop of `latency` further away."""

    level: str
    count: int
    latency: float = 0.0


@dataclass(frozen=True, slots=True)
class Topology:
    """A machine.

    Attributes:
        name, title: what it is called; what it is, in a line.
        levels: lowest first; or `cables`, of `named_cards` cards.
        memory: what a card's memory moves [B/s], which sets how fast it adds and copies.
        message: what each message of a step but the first costs its sender [s].
        cores: 0: every card is a machine of its own. Else the cards are processes that share so many processors and one
            memory: then every message costs a processor `message`, and what all cards move adds up.
        protocols: at least one.
        published: what a source says of a card's links together, each way [B/s], or None.
        sources, assumed: in words, for those who look at figures.
    """

    name: str
    title: str = ""
    levels: tuple[Level, ...] = ()
    cables: tuple[Cable, ...] = ()
    named_cards: int = 0
    memory: float = float("inf")
    message: float = 0.0
    cores: int = 0
    protocols: tuple[Protocol, ...] = (Protocol(),)
    routing: str = "detour"
    spares: Spares | None = None
    published: float | None = None
    published_mark: str = "B"
    sources: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.levels) == bool(self.cables):
            raise InvalidValue(f"topology {self.name!r} must have levels or links, one of the two")
        if self.routing not in ROUTINGS:
            raise InvalidValue(f"routing={self.routing!r} must be one of {', '.join(ROUTINGS)}")
        if not self.memory > 0 or min(self.message, self.cores) < 0 or not self.protocols:
            raise InvalidValue(
                f"topology {self.name!r}: memory={self.memory} must be above 0, message={self.message} and "
                f"cores={self.cores} at least 0, and there must be a protocol"
            )
        self._check_size()
        names = [level.name for level in self.levels]
        if len(set(names)) < len(names):
            raise InvalidValue(f"topology {self.name!r}: levels {', '.join(names)} must differ in name")
        for below, level in zip(self.levels, self.levels[1:], strict=False):
            if level.trunk and not below.switched:
                raise InvalidValue(
                    f"level {level.name!r}: trunk=true needs switches below it, and {below.name!r} is a {below.kind}; "
                    "leave trunk out: then every card has a port of its own"
                )
        if self.spares is not None and (self.spares.level not in names or self.spares.count < 1):
            raise InvalidValue(
                f"spares: level={self.spares.level!r} must be one of {', '.join(names)}, count at least 1"
            )

    def _check_size(self) -> None:
        if self.ncards > MOST_CARDS:
            raise InvalidValue(
                f"topology {self.name!r}: {self.ncards} cards are more than {MOST_CARDS}; take smaller or fewer levels"
            )
        links = sum(self.ncards * (level.size if level.kind == "full_mesh" else 2) for level in self.levels)
        if links > MOST_LINKS:
            raise InvalidValue(
                f"topology {self.name!r}: {links} links are more than {MOST_LINKS}; take smaller levels, or a switch "
                "in place of a full mesh"
            )

    @property
    def ncards(self) -> int:
        return prod(level.size for level in self.levels) if self.levels else self.named_cards

    def below(self, index: int) -> int:
        """Cards in one unit of what level `index` joins."""
        return prod(level.size for level in self.levels[:index])

    def weakest_mark(self) -> str:
        """How sure the least sure of its figures is."""
        marks = [p.mark for p in self.protocols]
        for level in self.levels:
            marks += level.marks.values()
        for cable in self.cables:
            marks += cable.marks.values()
        return max(marks or ["assumed"], key=MARKS.index)
