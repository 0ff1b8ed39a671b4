"""The machine that a job pretends to run on: which one, where its ranks sit, what its cards may hold, what if."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from superpod.interconnect.env_values import MOST_TIME_SCALE
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.units import parse_size

if TYPE_CHECKING:
    from superpod.collectives.clock_price import Pricer

PACKED = "packed"
TIME_SCALE = 1000.0  # of --shape, when it is not said: model microseconds become milliseconds
WHAT_IF = ("cards", "topology", "placement", "algorithm")


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Another scale at which the calls of a job are priced when it has ended; None: as it ran.

    Attributes:
        text: as it was asked for.
        algorithm: of ours, for the collectives that have it; "best": the fastest one for each call.
    """

    text: str
    cards: int | None = None
    topology: str | None = None
    placement: str | None = None
    algorithm: str | None = None

    @staticmethod
    def parse(text: str) -> WhatIf:
        """ "cards=1024,algorithm=best". Raises InvalidValue."""
        pairs = [part.partition("=") for part in text.split(",")]
        keys = [key.strip() for key, _, _ in pairs]
        for (_, equals, value), key in zip(pairs, keys, strict=True):
            if not equals or not value.strip() or key not in WHAT_IF or keys.count(key) > 1:
                raise InvalidValue(
                    f"--what-if {text!r} must say other {', '.join(WHAT_IF)}, each once: cards=1024,algorithm=best"
                )
        said = {key: value.strip() for key, (_, _, value) in zip(keys, pairs, strict=True)}
        cards = said.pop("cards", None)
        if cards is not None and (not cards.isdecimal() or int(cards) < 1):
            raise InvalidValue(f"--what-if {text!r}: cards={cards} must be a whole number, at least 1")
        return WhatIf(text, None if cards is None else int(cards), **said)

    def pricer(self, machine: MachineSpec, world_size: int) -> Pricer:
        """What prices the calls at that scale. Raises InvalidValue."""
        from superpod.collectives.clock_price import Pricer

        assert machine.topology is not None
        cards, placement = self.cards or world_size, self.placement or machine.placement
        listed = placement == machine.placement and placement not in (PACKED, "spread")
        if listed and cards != world_size:
            raise InvalidValue(
                f"the placement that was given is for {world_size} ranks and says nothing of {cards}; "
                "add placement=packed or placement=spread"
            )
        faults = "" if self.topology else machine.faults  # they name cards of the job's own machine
        return Pricer.of(self.topology or machine.topology, placement, cards, faults)


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What superpod-run was told of the machine.

    Attributes:
        topology: a preset, or the absolute path of a TOML file; None: there is no modelled clock.
        placement: see interconnect/placement.py; without a file.
        faults: what is wrong with it, as Faults.parse takes it.
        what_if: other scales that the closing table compares with.
        time_scale: above 0: the links really take their time, so many times as long.
        hbm: bytes that a card may allocate beyond what it has at its start; None: as many as there are.
        hbm_text: the same as the user wrote it.
    """

    topology: str | None = None
    placement: str = PACKED
    faults: str = ""
    what_if: tuple[WhatIf, ...] = ()
    time_scale: float = 0.0
    hbm: int | None = None
    hbm_text: str = ""

    def check(self, world_size: int, kind: str, nhosts: int = 1) -> None:
        """Raises InvalidValue for what this job cannot have; lays the links, so nothing is left for cards to find."""
        if self.hbm is not None and self.hbm < 1:
            raise InvalidValue(f"--hbm {self.hbm_text} must be above 0 bytes, such as 2GiB; leave it out for no limit")
        if self.hbm is not None and kind == "program":
            raise InvalidValue(
                f"--hbm {self.hbm_text} must go with a Python target: what another program allocates before it is "
                "under way cannot be told from its data; limit it by ulimit -v"
            )
        if self.time_scale and nhosts > 1:
            raise InvalidValue(
                f"--shape must not go with {nhosts} hosts: the cards of one host share the calendar of the links and "
                "one clock; start them all on one host"
            )
        if self.topology is not None:
            self.pricer(world_size).machine  # noqa: B018  laying its links is what may fail
            for other in self.what_if:
                _check_what_if(other, self, world_size)

    def pricer(self, world_size: int) -> Pricer:
        """What prices the calls of this job. Raises InvalidValue: no such machine, or it has no room for the ranks."""
        from superpod.collectives.clock_price import Pricer

        assert self.topology is not None
        return Pricer.of(self.topology, self.placement, world_size, self.faults)

    def environment(self) -> dict[str, str]:
        """The variables that tell a card."""
        return {
            "SUPERPOD_TOPOLOGY": self.topology or "",
            "SUPERPOD_PLACEMENT": self.placement if self.topology else "",
            "SUPERPOD_MACHINE_FAULTS": self.faults,
            "SUPERPOD_TIME_SCALE": repr(self.time_scale) if self.time_scale else "",
            "SUPERPOD_HBM": "" if self.hbm is None else str(self.hbm),
        }


def machine_spec(
    topology: str | None,
    placement: str | None,
    what_if: list[str],
    *,
    faults: str = "",
    shape: bool,
    time_scale: str | None,
    hbm: str | None,
) -> MachineSpec:
    """From what was typed. Raises InvalidValue for options that do not go together, or make no sense alone."""
    from superpod.interconnect.placement import in_words

    wanted = [
        ("--placement", placement, "whose cards it gives to the ranks"),
        ("--machine-fault", faults or None, "which has it"),
        ("--what-if", what_if and what_if[0], "to compare with"),
        ("--shape", "" if shape else None, "whose links it imitates"),
    ]
    for option, value, why in wanted:
        if value not in (None, []) and topology is None:
            raise InvalidValue(
                f"{f'{option} {value}'.strip()} must go with --topology T, {why}; T is a file or a preset"
            )
    if time_scale is not None and not shape:
        raise InvalidValue(f"--time-scale {time_scale} must go with --shape: only shaped links take their time")
    if topology is not None and Path(topology).is_file():
        topology = str(Path(topology).resolve())  # cards may change their working directory
    return MachineSpec(
        topology,
        PACKED if placement is None else in_words(placement),
        faults,
        tuple(WhatIf.parse(text) for text in what_if),
        _scale(time_scale) if shape else 0.0,
        None if hbm is None else _bytes(hbm),
        hbm or "",
    )


def _check_what_if(other: WhatIf, machine: MachineSpec, world_size: int) -> None:
    from superpod.collectives import algorithms
    from superpod.interconnect.env import COLLECTIVES

    try:
        other.pricer(machine, world_size).machine  # noqa: B018  as above
    except InvalidValue as error:
        raise InvalidValue(f"--what-if {other.text}: {error}") from error
    known = sorted({name for collective in COLLECTIVES for name in algorithms.names(collective)})
    if other.algorithm not in (None, "best", *known):
        raise InvalidValue(
            f"--what-if {other.text}: algorithm={other.algorithm} does not exist; there are best, {', '.join(known)}"
        )


def _scale(text: str | None) -> float:
    try:
        scale = TIME_SCALE if text is None else float(text)
    except ValueError:
        scale = -1.0
    if not 0 < scale <= MOST_TIME_SCALE:
        raise InvalidValue(
            f"--time-scale {text} must be a number above 0, such as 1000: model microseconds then take milliseconds; "
            f"at most {MOST_TIME_SCALE:.0f}"
        )
    return scale


def _bytes(text: str) -> int:
    try:
        return parse_size(text)
    except InvalidValue as error:
        raise InvalidValue(f"--hbm: {error}") from error
