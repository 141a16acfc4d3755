"""Coarsening: contract independent edges, level by level, until each component is a single node.

Run backwards, a level is an expansion. Some nodes split in two, the two children are joined, and every edge of a split
node goes to its first child, its second, or both. No two contracted edges are adjacent or joined by an edge, so an edge
has at most one split end and therefore three ways to go. Contraction keeps planar graphs planar, trees trees, and
components apart.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch

from nextscale.plugin import ConfigError, unknown
from nextscale_graph.triangles import triangles

FIRST, SECOND, BOTH = 0, 1, 2
"""Where an edge of a split node goes."""


class Coarsening(ABC):
    """A strategy: the cost of contracting each edge. Every level contracts the cheapest independent edges.

    Graphs of N nodes are given by ``size`` N and ``edges`` 2 E, sorted, the smaller end first.
    """

    def begin(self, size: int, edges: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        """A label per node (N integers) that the strategy remembers, or None. A merged node inherits the label."""
        return None

    @abstractmethod
    def costs(self, size: int, edges: np.ndarray, masses: np.ndarray, memory: np.ndarray | None) -> np.ndarray:
        """E costs of contracting the edges of a graph whose nodes have the given ``masses`` (N): how many nodes of the
        whole graph each stands for.

        The caller adds a random number, U(0, 1), to each cost. Edges of infinite cost are left to later levels; at
        least one edge must have a finite cost.
        """


class Cheapest(Coarsening):
    """1.5 c + 10 max(c - 2, 0) + min degree, where c is the number of common neighbours of the edge's ends.

    This merges few edges (each merged edge is a three-way choice later), and contracts peripheral nodes first.
    """

    def costs(self, size: int, edges: np.ndarray, masses: np.ndarray, memory: np.ndarray | None) -> np.ndarray:
        common, lower = _neighbours(size, edges)
        return 1.5 * common + 10 * np.maximum(common - 2, 0) + lower


class Interior(Coarsening):
    """10 |c - 2| + min degree, where c is the number of common neighbours of the edge's ends.

    In a triangulated region, the interior (edges with a triangle on either side) is contracted first and the border
    last. Run backwards, the border, and with it the number of edges, is settled while the graph is small, and each
    split in the interior adds three edges. (If the border were contracted early, it would become a triangle like any
    other, and nothing would tell where it was.)
    """

    def costs(self, size: int, edges: np.ndarray, masses: np.ndarray, memory: np.ndarray | None) -> np.ndarray:
        common, lower = _neighbours(size, edges)
        return 10 * np.abs(common - 2) + lower


class Random(Coarsening):
    """All edges cost the same, so chance decides."""

    def costs(self, size: int, edges: np.ndarray, masses: np.ndarray, memory: np.ndarray | None) -> np.ndarray:
        return np.zeros(edges.shape[1])


class Communities(Coarsening):
    """Edges inside communities (found once, by Louvain) while there are any, then edges between communities. In both
    cases the lightest go first, by the number of nodes that their ends stand for.

    Run backwards, it is mostly the heaviest node that splits, into halves. A node's mass then tells whether the node is
    several communities, one, or a part of one. Where its edges go depends on masses alone, not on which edges were
    found to be alike.
    """

    def begin(self, size: int, edges: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        graph = nx.empty_graph(size)
        graph.add_edges_from(edges.T.tolist())
        member = np.zeros(size, np.int64)
        for number, community in enumerate(nx.community.louvain_communities(graph, seed=int(rng.integers(2**31)))):
            member[list(community)] = number
        return member

    def costs(self, size: int, edges: np.ndarray, masses: np.ndarray, memory: np.ndarray | None) -> np.ndarray:
        assert memory is not None
        inside = memory[edges[0]] == memory[edges[1]]
        return np.where(inside | ~inside.any(), masses[edges].sum(0), np.inf)


def _neighbours(size: int, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of E edges: the number of common neighbours of its ends, and the smaller of their degrees."""
    sides = triangles(torch.from_numpy(edges), size).numpy()
    degree = np.bincount(edges.flatten(), minlength=size)
    return np.bincount(sides.flatten(), minlength=edges.shape[1]), degree[edges].min(0)


STRATEGIES: dict[str, type[Coarsening]] = {
    "cheapest": Cheapest,
    "communities": Communities,
    "interior": Interior,
    "random": Random,
}


def strategy(name: str) -> Coarsening:
    """Look up a strategy by name. Raises ConfigError for an unknown name."""
    if name not in STRATEGIES:
        raise ConfigError(f"tokenizer.coarsening: {unknown('strategy', name, STRATEGIES)}")
    return STRATEGIES[name]()


@dataclass
class Level:
    """One expansion, in the order of its tokens.

    ``splits`` are the positions (ascending) of the coarse nodes that split. ``masses`` are the numbers of nodes of the
    whole graph that their first children stand for. ``patterns`` say where each of their edges goes, ordered by split
    node, then by neighbour.
    """

    splits: list[int]
    masses: list[int]
    patterns: list[int]


def coarsen(
    size: int, edges: np.ndarray, method: Coarsening, ratio: float, rng: np.random.Generator
) -> tuple[int, list[Level], np.ndarray]:
    """Contract a graph of ``size`` nodes and the given ``edges``, 2 E (sorted, the smaller end first), and describe
    the way back.

    Returns:
        the number of components; the expansions, coarsest first; and the final node order: node i of the grown graph is
        node ``order[i]`` of the given graph.
    """
    steps, memory = [], method.begin(size, edges, rng)
    masses = np.ones(size, np.int64)
    while edges.shape[1]:
        pairs = independent_edges(size, edges, method, masses, memory, ratio, rng)
        coarse, parents = contract(size, edges, pairs)
        steps.append((edges, masses, pairs, parents))
        size, edges, masses = size - len(pairs), coarse, np.bincount(parents, masses).astype(np.int64)
        if memory is not None:
            inherited = np.zeros(size, memory.dtype)
            inherited[parents] = memory
            memory = inherited
    order = rng.permutation(size)
    levels = []
    for fine, masses, pairs, parents in reversed(steps):
        level, order = _expand(fine, masses, pairs, parents, order, rng)
        levels.append(level)
    return size, levels, order


def independent_edges(
    size: int,
    edges: np.ndarray,
    method: Coarsening,
    masses: np.ndarray,
    memory: np.ndarray | None,
    ratio: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """M 2: the cheapest edges of which no two are adjacent or joined by an edge. There are at most ``ratio`` of the
    nodes (rounded up) and at least one, none of infinite cost."""
    wanted = math.ceil(size * ratio)
    costs = method.costs(size, edges, masses, memory) + rng.random(edges.shape[1])
    order = np.argsort(costs, kind="stable")[: np.isfinite(costs).sum()]
    starts, near = _adjacency(size, edges)
    blocked, chosen = bytearray(size), []
    # Each choice depends on all before it. Plain lists are several times faster here than numpy's scalars.
    bounds, others = starts.tolist(), near.tolist()
    for a, b in edges.T[order].tolist():
        if blocked[a] or blocked[b]:
            continue
        chosen.append((a, b))
        if len(chosen) == wanted:
            break
        for node in (*others[bounds[a] : bounds[a + 1]], *others[bounds[b] : bounds[b + 1]]):
            blocked[node] = True
    return np.array(chosen)


def _adjacency(size: int, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours of all nodes in a row, 2 E, and where each node's begin, N + 1."""
    tails, heads = np.concatenate([edges, edges[::-1]], 1)
    starts = np.concatenate([[0], np.bincount(tails, minlength=size).cumsum()])
    return starts, heads[np.argsort(tails, kind="stable")]


def contract(size: int, edges: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The edges of the graph in which each pair is merged into one node; and N integers, the node that each old node
    became."""
    gone = np.zeros(size, bool)
    gone[pairs[:, 1]] = True
    parents = np.cumsum(~gone) - 1
    parents[pairs[:, 1]] = parents[pairs[:, 0]]
    low, high = np.sort(parents[edges], 0)
    keys = np.unique((low * size + high)[low < high])
    return np.stack(np.divmod(keys, size)), parents


def _expand(
    fine: np.ndarray,
    masses: np.ndarray,
    pairs: np.ndarray,
    parents: np.ndarray,
    order: np.ndarray,
    rng: np.random.Generator,
) -> tuple[Level, np.ndarray]:
    """The expansion from the coarse nodes, placed as in ``order``, to the nodes of the fine graph, whose edges are
    given; and the order of the fine nodes."""
    size, number = len(parents), len(order)
    # The children of each coarse node; both are the same for nodes that do not split.
    children = np.zeros((2, number), np.int64)
    children[:, parents] = np.arange(size)
    swap = rng.random(len(pairs)) < 0.5
    children[:, parents[pairs[:, 0]]] = np.where(swap, pairs.T[::-1], pairs.T)
    split = children[0, order] != children[1, order]
    splits = np.flatnonzero(split)
    grown = children.T[order].flatten()[np.stack([np.ones_like(split), split], 1).flatten()]
    # Every edge at a split node, from the node's position to that of the neighbour, which does not split.
    position = np.empty(number, np.int64)
    position[order] = np.arange(number)
    tails, heads = np.concatenate([fine, fine[::-1]], 1)
    own, other = parents[tails], parents[heads]
    outward = split[position[own]] & (own != other)
    keys = (position[own] * number + position[other])[outward]
    # Whether it begins at the first child (1), the second (2), or both.
    begins = np.where(tails == children[0, own], 1, 2)[outward]
    found, which = np.unique(keys, return_inverse=True)
    patterns = np.array([FIRST, SECOND, BOTH])[np.bincount(which, begins, len(found)).astype(np.int64) - 1]
    return Level(splits.tolist(), masses[children[0, order[splits]]].tolist(), patterns.tolist()), grown
