"""What all cards of a job choose algorithms by, beside what the user asks for.

It must be the same for all of them, or they would call different algorithms and fail. So no card looks for it by
itself: superpod-run reads this machine's tuned table once, looks at the processors, and tells all cards, on all hosts,
in SUPERPOD_SELECTION. Cards that something else has started know nothing of it; on one host the user may name the file,
by SUPERPOD_TUNING.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from superpod.collectives.tuning import Tuning, read
from superpod.interconnect.env import Settings
from superpod.interconnect.errors import InvalidValue

OFF = "off"
_LONGEST = 32 << 10  # characters: they go with every card's start, in a message of at most 64 KiB


@dataclass(frozen=True, slots=True)
class Selection:
    """Attributes:
    own_cores: every card of a host has a processor core of its own.
    tuning: what was measured here.
    """

    own_cores: bool = False
    tuning: Tuning | None = None

    def text(self) -> str:
        """For the environment. Raises InvalidValue for a table that is too long."""
        text = json.dumps([self.own_cores, self.tuning and self.tuning.packed()], separators=(",", ":"))
        if len(text) > _LONGEST:
            raise InvalidValue(
                f"{self.tuning and self.tuning.file} has too many rules: {len(text)} characters, of which cards take "
                f"{_LONGEST}; tune fewer collectives or numbers of cards, or set SUPERPOD_TUNING=off"
            )
        return text

    @staticmethod
    def of_card(settings: Settings) -> Selection:
        """What the environment says. Raises InvalidValue for what makes no sense."""
        if settings.selection:
            try:
                own_cores, packed = json.loads(settings.selection)
                tuning = Tuning.unpacked(packed) if packed and settings.tuning != OFF else None
                return Selection(bool(own_cores), tuning)
            except (ValueError, TypeError) as error:
                raise InvalidValue(
                    f"SUPERPOD_SELECTION={settings.selection[:80]!r} is superpod-run's to set ({error}); unset it"
                ) from error
        return Selection(tuning=_named(settings))


def tuned_link(link: str, settings: Settings) -> str:
    """The link whose tuned rules hold; "" where messages travel in another way than they were measured in."""
    other = settings.time_scale or (link == "zmq" and settings.transport != "ipc")
    return "" if other else link


def _named(settings: Settings) -> Tuning | None:
    """The table that the user has named, where no superpod-run has read it."""
    if settings.tuning in ("", OFF):
        return None
    if settings.hosts.several:
        raise InvalidValue(
            f"SUPERPOD_TUNING={settings.tuning} in a job of several hosts must come from superpod-run, which gives all "
            "cards one table; start with it, or unset the variable"
        )
    return wanted(settings.tuning)


def wanted(file: str) -> Tuning:
    """The table that SUPERPOD_TUNING names. Raises InvalidValue if it cannot be had, or does not count here."""
    try:
        known = read(Path(file))
        if why := known.unfit():
            raise InvalidValue(f"{why}; make one here with superpod-bench tune -o FILE, or unset SUPERPOD_TUNING")
    except InvalidValue as error:
        raise InvalidValue(f"SUPERPOD_TUNING={file}: {error}") from error
    return known.tuning
