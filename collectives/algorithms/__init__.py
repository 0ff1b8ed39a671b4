"""The registry of algorithms, by collective and name. A new one is a file beside this one and a line in `_FILES`."""

from __future__ import annotations

from functools import lru_cache

from superpod.collectives.algorithms import (
    bruck,
    circulant,
    direct,
    direct_rooted,
    dissemination,
    double_tree,
    halving_doubling,
    hierarchical,
    leaders,
    leaders_blocks,
    multi_ring,
    nhr,
    ordered,
    pairwise,
    per_dimension,
    rails,
    rails_all_to_all,
    ring,
    torus,
    tree,
    two_path,
)
from superpod.collectives.algorithms.algorithm import Algorithm
from superpod.collectives.schedule import REDUCING, ROOTED, Schedule
from superpod.interconnect.errors import InvalidValue

__all__ = ["Algorithm", "build", "get", "in_fixed_order", "names"]

_FILES = (
    ring,
    tree,
    double_tree,
    halving_doubling,
    circulant,
    direct,
    direct_rooted,
    ordered,
    bruck,
    pairwise,
    dissemination,
    hierarchical,
    leaders,
    leaders_blocks,
    rails,
    rails_all_to_all,
    per_dimension,
    torus,
    multi_ring,
    nhr,
    two_path,
)
_REGISTRY: dict[str, dict[str, Algorithm]] = {}
for _file in _FILES:
    for _algorithm in _file.ALGORITHMS:
        _REGISTRY.setdefault(_algorithm.collective, {})[_algorithm.name] = _algorithm


def names(collective: str) -> tuple[str, ...]:
    """The algorithms of a collective. Raises InvalidValue when there is no such collective."""
    if collective not in _REGISTRY:
        raise InvalidValue(f"collective={collective!r} must be one of {', '.join(_REGISTRY)}")
    return tuple(_REGISTRY[collective])


def in_fixed_order(collective: str) -> tuple[str, ...]:
    """Those of a collective that give the same bits as one another: all, if it adds nothing. Raises InvalidValue."""
    known = names(collective)
    if collective not in REDUCING:
        return known
    return tuple(name for name in known if _REGISTRY[collective][name].fixed_order)


def get(collective: str, name: str) -> Algorithm:
    """One algorithm. Raises InvalidValue, listing those there are, when there is none of that name."""
    known = names(collective)
    if name not in known:
        raise InvalidValue(f"algorithm={name!r} does not exist for {collective}; there are {', '.join(known)}")
    return _REGISTRY[collective][name]


@lru_cache(maxsize=256)
def build(collective: str, name: str, world_size: int, root: int = 0) -> Schedule:
    """An algorithm's schedule, kept: schedules are immutable, and every call of a collective asks for one.

    Raises InvalidValue when there is no such algorithm, world_size < 1, or root is no rank (without a root: not 0).
    """
    algorithm = get(collective, name)
    if world_size < 1:
        raise InvalidValue(f"world_size={world_size} must be at least 1")
    roots = world_size if collective in ROOTED else 1
    if not 0 <= root < roots:
        rule = f"must be a rank: 0 to {roots - 1}" if collective in ROOTED else f"must be 0: {collective} has no root"
        raise InvalidValue(f"root={root} {rule}")
    return algorithm.build(world_size, root) if collective in ROOTED else algorithm.build(world_size)
