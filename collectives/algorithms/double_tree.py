"""Double binary tree: two trees, half the data each; an inner rank of one is a leaf of the other. Pipelined.

With K = 4 chunks a tree and H = the trees' height [edges], for n > 1:
all_reduce  K − 1 + 2H steps, H = floor(log2 n), min(n, 4)/2·S: half of S up each tree, S down the one to two children
broadcast   K − 1 + H steps, H = ceil(log2 n), S    reduce  the same backwards, S
A rooted collective has its root on top of both trees, which then span the other ranks. No edge colouring: a rank serves
both its children in one step.

Source: Sanders, Speck & Träff, Two-tree algorithms for full bandwidth broadcast, reduction and scan, ParCo 35 (2009).
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, any_other, ceil_log2, floor_log2
from superpod.collectives.schedule import IntArray, Schedule, Step

CHUNKS_PER_TREE = 4


class _Edges(NamedTuple):
    child: IntArray
    parent: IntArray
    depth: IntArray  # the child's: 1 just below the top
    tree: IntArray


def _in_order(m: int) -> tuple[IntArray, IntArray]:
    """Parent and depth of nodes 1 to m of a binary tree in order: odd nodes are leaves; the top's parent is 0."""
    node = np.arange(1, m + 1)
    low = node & -node
    above = (node ^ low) | (low << 1)
    parent = np.where(above <= m, above, node ^ low)
    depth, ancestor = np.zeros(m, np.int64), parent
    while ancestor.any():
        depth += ancestor > 0
        ancestor = np.where(ancestor, parent[ancestor - 1], 0)
    return parent, depth


def _seats(m: int) -> tuple[IntArray, IntArray]:
    """Who of m ranks sits at nodes 1 to m of each tree: at an even node of one at most. Entry 0, above the top: −1."""
    node = np.arange(m + 1)
    second = m - node if m % 2 == 0 else node % m  # the first one mirrored, or everyone one seat further
    second[0] = -1
    return node - 1, second


def _edges(n: int, root: int | None) -> _Edges:
    """Both trees over all ranks, or, with a root, below it over the others, of which root + 1 is the first."""
    m, shift, above = (n, 0, 0) if root is None else (n - 1, root + 1, 1)
    (parent, depth), seats = _in_order(m), _seats(m)
    below = depth + above > 0  # the top has an edge only if there is a root above it
    return _Edges(
        child=np.concatenate([(seat[1:][below] + shift) % n for seat in seats]),
        parent=np.concatenate([(seat[parent[below]] + shift) % n for seat in seats]),
        depth=np.tile(depth[below] + above, 2),
        tree=np.repeat([0, 1], np.count_nonzero(below)),
    )


def _wave(edges: _Edges, chunk: IntArray, *, up: bool) -> Step:
    """Every edge carries its tree's chunk of that number, if there is one."""
    alive = (chunk >= 0) & (chunk < CHUNKS_PER_TREE)
    ends = (edges.child[alive], edges.parent[alive])
    src, dst = ends if up else ends[::-1]
    return Step.of(src, dst, (edges.tree * CHUNKS_PER_TREE + chunk)[alive], reduce=up)


def all_reduce(n: int) -> Schedule:
    """Chunk c leaves depth d upwards in step c + H − d and comes down to depth d in step c + H + d − 1."""
    edges, height = _edges(n, root=None), floor_log2(n)

    def build(s: int) -> Step:
        up, down = s - height + edges.depth, s - height - edges.depth + 1
        return Step.join(_wave(edges, up, up=True), _wave(edges, down, up=False))

    return Schedule("all_reduce", "double_tree", n, 2 * CHUNKS_PER_TREE, _double_steps(n), build)


def broadcast(n: int, root: int) -> Schedule:
    """Chunk c comes to depth d in step c + d − 1."""
    edges = _edges(n, root)
    return _rooted("broadcast", n, root, lambda s: _wave(edges, s - edges.depth + 1, up=False))


def reduce(n: int, root: int) -> Schedule:
    """Chunk c leaves depth d in step c + H − d."""
    edges, height = _edges(n, root), ceil_log2(n)
    return _rooted("reduce", n, root, lambda s: _wave(edges, s - height + edges.depth, up=True))


def _rooted(collective: str, n: int, root: int, build: Callable[[int], Step]) -> Schedule:
    return Schedule(collective, "double_tree", n, 2 * CHUNKS_PER_TREE, _rooted_steps(n), build, root=root)


def _rooted_steps(n: int) -> int:
    return any_other(n) * (ceil_log2(n) + CHUNKS_PER_TREE - 1)


def _double_steps(n: int) -> int:
    return any_other(n) * (2 * floor_log2(n) + CHUNKS_PER_TREE - 1)


def _sent(n: int) -> Fraction:
    return any_other(n) * Fraction(min(n, 4), 2)


_PAPER = "Sanders, Speck & Träff, Parallel Computing 35 (2009)"
ALGORITHMS = (
    Algorithm("all_reduce", "double_tree", all_reduce, _double_steps, _sent, _PAPER),
    Algorithm("broadcast", "double_tree", broadcast, _rooted_steps, any_other, _PAPER),
    Algorithm("reduce", "double_tree", reduce, _rooted_steps, any_other, _PAPER),
)
