"""Which ranks of a group share a host, and schedules for just that.

The group's first rank reads the others' addresses, which say it, and puts the answer where they find it: one look each,
at a group's first collective, in jobs of several hosts only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np

from superpod.collectives import algorithms
from superpod.collectives.schedule import ROOTED, Schedule, Step
from superpod.interconnect.errors import InvalidValue, SuperpodError
from superpod.interconnect.group import Group
from superpod.interconnect.host import Address, split
from superpod.interconnect.mesh import Mesh
from superpod.interconnect.streams import Receive

_TAG = -2  # of no stream: that of a question which no message answers


class Layout:
    """The hosts of a group.

    Attributes:
        hosts: group rank → its host, numbered in the order of their first ranks.
    """

    def __init__(self, hosts: Sequence[int]) -> None:
        self.hosts = tuple(hosts)

    @staticmethod
    def of(names: Sequence[str]) -> Layout:
        """From each rank's host by name."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return Layout([numbers[name] for name in names])

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Cards of each host."""
        return tuple(self.hosts.count(host) for host in range(self.count))

    @cached_property
    def count(self) -> int:
        """How many hosts there are."""
        return len(set(self.hosts))

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The ranks host by host."""
        return tuple(sorted(range(len(self.hosts)), key=lambda rank: (self.hosts[rank], rank)))

    def __str__(self) -> str:
        return f"{self.count} hosts of {' + '.join(map(str, self.sizes))} cards"

    @property
    def in_order(self) -> bool:
        """Whether the ranks of each host are neighbours."""
        return self.order == tuple(range(len(self.hosts)))

    def with_rank(self, rank: int) -> tuple[int, ...]:
        """The ranks on the host of `rank`, in order."""
        return tuple(other for other, host in enumerate(self.hosts) if host == self.hosts[rank])

    def can(self, collective: str, name: str) -> bool:
        """Whether an algorithm can be built for these hosts, and not only for the number of their cards."""
        known = algorithms.get(collective, name)
        if not (self.in_order or collective not in _BLOCKED):
            return False
        return known.hosted or (known.shaped and len(set(self.sizes)) == 1)

    def build(self, collective: str, name: str, root: int = 0) -> Schedule:
        """The algorithm for these hosts; as `algorithms.build` has it, if it knows no hosts."""
        if not self.can(collective, name):
            return algorithms.build(collective, name, len(self.hosts), root)
        schedule = _built(collective, name, self.sizes, self.order.index(root) if collective in ROOTED else 0)
        return schedule if self.in_order else _renamed(schedule, self.order, root)


_BLOCKED = ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter")
"""The collectives whose blocks belong to ranks, which renaming ranks would mix up."""


@lru_cache(maxsize=256)
def _built(collective: str, name: str, sizes: tuple[int, ...], root: int) -> Schedule:
    algorithm = algorithms.get(collective, name)
    what = {"hosts": sizes} if algorithm.hosted else {"shape": (sizes[0], len(sizes))}
    args = (sum(sizes), root) if collective in ROOTED else (sum(sizes),)
    return algorithm.build(*args, **what)


def _renamed(schedule: Schedule, names: Sequence[int], root: int) -> Schedule:
    """The same with other ranks: `names` are the new ones."""
    new = np.array(names)

    def build(s: int) -> Step:
        step = schedule.step(s)
        return replace(step, src=new[step.src], dst=new[step.dst])

    return replace(schedule, build=build, root=root, program=None, traffic=None)


class OnHosts:
    """A group's layout, found out when it is needed first."""

    def __init__(self, mesh: Mesh, group: Group, ranks: Sequence[int], seconds: float) -> None:
        """`ranks`: the group's, in the mesh; `seconds`: how long to wait for all of them together."""
        self._mesh, self._group, self._ranks, self._seconds = mesh, group, ranks, seconds
        self._layout = None if len(ranks) > 1 else Layout((0,))
        self._several = bool(split(mesh.link.address)[1])

    def layout(self) -> Layout | None:
        """Which ranks share a host; None in a job of one host.

        The first look waits for the others: raises DeadlineExceeded when they do not come, and the group's failure.
        """
        if self._several and self._layout is None:
            first = self._mesh.rank == self._ranks[0]
            try:
                self._layout = self._written() if first else self._read()
            except InvalidValue as error:  # of what the others wrote: it is no argument of this call's that is refused
                raise SuperpodError(str(error)) from error
        return self._layout

    @property
    def _name(self) -> str:
        return f"hosts/{self._group.ident}/{self._group.life}"

    def _written(self) -> Layout:
        end = time.monotonic() + self._seconds
        addresses = [self._address(rank, max(0.0, end - time.monotonic())) for rank in self._ranks]
        layout = Layout.of([Address.parse(split(address)[0]).host for address in addresses])
        self._mesh.publish(self._name, ",".join(map(str, layout.hosts)))
        return layout

    def _address(self, rank: int, seconds: float) -> str:
        return self._mesh.link.address if rank == self._mesh.rank else self._mesh.find(rank, self._group, seconds)

    def _read(self) -> Layout:
        key = (self._ranks[0], self._group.ident, _TAG)
        awaited = Receive(key, np.empty(1, np.uint8), None, 0, 0, f"first call of group {self._group.name}")
        table = self._mesh.find_named(self._name, self._group, awaited, self._seconds)
        return _read(table, len(self._ranks))


def _read(table: str, count: int) -> Layout:
    try:
        hosts = [int(host) for host in table.split(",")]
    except ValueError:
        hosts = []
    if len(hosts) != count or set(hosts) != set(range(len(set(hosts)))):
        raise InvalidValue(f"{table[:80]!r} is no table of {count} cards' hosts; install one superpod everywhere")
    return Layout(hosts)
