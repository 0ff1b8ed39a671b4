"""The numbers of superpod-sim calibrate: which factors make a topology's predictions meet measured points.

At most four parameters: a factor on all latencies (links, calls, steps), one on the share of the rate that is reached,
one on the cost of a segment, and, from five points on, the exponent with which that cost grows. Fewer points, fewer of
them, in this order. Least squares of the logarithms, so that 10 % counts the same at 1 KiB and at 1 GiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from superpod.collectives import algorithms
from superpod.collectives.loads import Loads
from superpod.collectives.simulate import Machine, call_seconds, suited
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.topology import Protocol, Topology
from superpod.interconnect.wires import FloatArray
from superpod.simulator.points import Point
from superpod.simulator.predict import BEST

_CALL, _SEGMENT, _RAMP = (
    1e-6,
    1e-6,
    0.4,
)  # where the search begins if the topology says nothing; docs/model.md has the 0.4
_RAMPS = (0.2, 0.7)  # exponents that are believed
_ROUNDS = 60
_H = 1e-5  # the step of differences


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted topology; `predicted` [s] for each of all points; `used`: which of them it was fitted to."""

    topology: Topology
    predicted: tuple[float, ...]
    used: tuple[int, ...]
    nparameters: int


def fit(topology: Topology, found: Sequence[Point], used: Sequence[int]) -> Fit:
    """Fit `topology` to the points `used`. Raises InvalidValue when a point needs more cards than there are."""
    if not used:
        raise InvalidValue("there is no point to fit to; give at least one")
    start = _with_costs(topology)
    machine = Machine(start)
    known = [list(_candidates(machine, point)) for point in found]

    def predicted(x: FloatArray, which: Sequence[int]) -> FloatArray:
        changed, times = scaled(start, x), float(np.exp(x[0]))
        return np.array([min(_seconds(changed, *way, times) for way in known[i]) for i in which])

    measured = np.array([p.seconds for p in found])[list(used)]
    nparameters = min(len(used), 4 if len(used) >= 5 else 3)
    x = _least_squares(lambda y: np.log(predicted(y, used) / measured), nparameters, start.protocols[-1].ramp)
    everything = predicted(x, range(len(found)))
    return Fit(scaled(start, x), tuple(everything.tolist()), tuple(used), nparameters)


def _candidates(machine: Machine, point: Point) -> Iterator[tuple[Loads, float]]:
    """What the point's algorithm, or each one if it is BEST, loads the machine with, and the bytes of a chunk."""
    names = algorithms.names(point.collective) if point.algorithm == BEST else (point.algorithm,)
    for name in names:
        schedule = suited(machine, point.collective, name, point.cards)
        yield machine.loads(schedule), point.nbytes / schedule.nchunks


def _with_costs(topology: Topology) -> Topology:
    """The same, with latency and a cost of segments to begin with if it has none: what is 0 cannot be scaled."""
    protocols = topology.protocols
    parts = [*topology.levels, *topology.cables, *protocols]
    if not any(getattr(part, name, 0) for part in parts for name in ("latency", "call", "step")):
        protocols = tuple(replace(p, call=_CALL) for p in protocols)
    if not any(p.segment for p in protocols):
        protocols = tuple(replace(p, segment=_SEGMENT, ramp=_RAMP) for p in protocols)
    return replace(topology, protocols=protocols)


def _seconds(topology: Topology, known: Loads, chunk: float, times: float) -> float:
    """The fastest protocol's; `known` was found with latencies that are now `times` as long."""
    later = replace(known, latency=known.latency * times)
    return min(call_seconds(topology, protocol, later, chunk) for protocol in topology.protocols)


def scaled(topology: Topology, x: FloatArray) -> Topology:
    """`topology` with parameters changed. `x`: logarithms of the factors on latencies, rate and segment; the ramp."""
    later, faster, segment = (float(np.exp(value)) for value in x[:3])

    def protocol(p: Protocol) -> Protocol:
        return replace(
            p,
            call=p.call * later,
            step=p.step * later,
            efficiency=p.efficiency * faster,
            segment=p.segment * segment,
            ramp=float(x[3]),
            mark="fitted",
        )

    def marks(old: Mapping[str, str]) -> dict[str, str]:
        return {**old, "latency": "fitted"}

    return replace(
        topology,
        message=topology.message * (later if topology.cores else 1.0),  # processors' time, like calls and steps
        levels=tuple(replace(one, latency=one.latency * later, marks=marks(one.marks)) for one in topology.levels),
        cables=tuple(replace(one, latency=one.latency * later, marks=marks(one.marks)) for one in topology.cables),
        protocols=tuple(map(protocol, topology.protocols)),
    )


def _least_squares(residuals: Callable[[FloatArray], FloatArray], nparameters: int, ramp: float) -> FloatArray:
    """Levenberg and Marquardt's method, from several costs of a segment; the first `nparameters` of four are free."""
    found = []
    for segment in (-6.0, -3.0, 0.0, 3.0, 6.0) if nparameters > 2 else (0.0,):
        x = np.array([0.0, 0.0, segment, ramp])
        damping, error = 1e-2, residuals(x)
        for _ in range(_ROUNDS):
            jacobian = np.stack([(residuals(x + _H * unit) - error) / _H for unit in np.eye(4)[:nparameters]], axis=1)
            square = jacobian.T @ jacobian
            step = np.linalg.solve(
                square + damping * (np.diag(np.diag(square)) + _H * np.eye(nparameters)), -jacobian.T @ error
            )
            new = x.copy()
            new[:nparameters] += np.clip(step, -2, 2)
            new[:3], new[3] = np.clip(new[:3], -15, 15), np.clip(new[3], *_RAMPS)
            further = residuals(new)
            if further @ further < error @ error:
                x, error, damping = new, further, damping / 3
            else:
                damping *= 4
        found.append((float(error @ error), x))
    return min(found, key=lambda pair: pair[0])[1]


def unfitted_errors(found: Sequence[Point], fitted: Fit) -> FloatArray:
    """Relative errors, absolute values, of the points that it was not fitted to."""
    rest = [i for i in range(len(found)) if i not in fitted.used]
    return np.array([abs(fitted.predicted[i] / found[i].seconds - 1) for i in rest])
