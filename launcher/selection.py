"""What the cards of a job choose algorithms by: found out once, told to all of them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping

from superpod.collectives.selection import OFF, Selection, wanted
from superpod.collectives.tuning import Tuning, cached, machine, machine_text, read
from superpod.interconnect.cores import cores
from superpod.interconnect.env import Settings
from superpod.interconnect.errors import InvalidValue


def selection_for(sizes: Collection[int], others: Collection[str], variables: Mapping[str, str]) -> Selection:
    """The selection of a job with so many cards on its hosts.

    Args:
        variables: what the cards get to know beside this process's environment.
        others: the other hosts' machines in words.
    Raises:
        InvalidValue: the table that the user has named does not count here, or what is in the cache is no table.
    """
    setting, here = variables.get("SUPERPOD_TUNING", Settings.read().tuning), machine_text(machine())
    different = sorted({other for other in others if other != here})
    own_cores = not different and max(sizes) <= cores()
    if setting == OFF:
        return Selection(own_cores)
    tuning, why = (wanted(setting), "") if setting else _in_cache()
    if tuning is not None and different:
        why = f"it was made on {here}, and there is a host with {different[0]}"
        if setting:
            raise InvalidValue(f"SUPERPOD_TUNING={setting}: {why}; unset it, or run on hosts that are alike")
    if why:
        print(f"superpod-run: the tuned table {cached()} is not used: {why}; see superpod-bench tune", file=sys.stderr)
        tuning = None
    return Selection(own_cores, tuning)


def _in_cache() -> tuple[Tuning | None, str]:
    """This machine's table, if there is one; and why it does not count."""
    path = cached()
    if path is None or not path.exists():
        return None, ""
    known = read(path)
    return known.tuning, known.unfit()
