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

from nextscale.plugin import ConfigError, unknown

FIRST, SECOND, BOTH = 0, 1, 2
"""Where an edge of a split node goes."""


class Coarsening(ABC):
    """A strategy: the cost of contracting each edge. Every level contracts the cheapest independent edges."""

    def begin(self, adjacency: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        """A label per node (N integers) that the strategy remembers, or None. A merged node inherits the label."""
        return None

    @abstractmethod
    def costs(
        self, adjacency: np.ndarray, edges: np.ndarray, masses: np.ndarray, memory: np.ndarray | None
    ) -> np.ndarray:
        """E costs of contracting the edges, 2 E, of a graph, N N booleans, whose nodes have the given ``masses`` (N):
        how many nodes of the whole graph each stands for.

        The caller adds a random number, U(0, 1), to each cost. Edges of infinite cost are left to later levels; at
        least one edge must have a finite cost.
        """


class Cheapest(Coarsening):
    """1.5 c + 10 max(c - 2, 0) + min degree, where c is the number of common neighbours of the edge's ends.

    This merges few edges (each merged edge is a three-way choice later), and contracts peripheral nodes first.
    """

    def costs(
        self, adjacency: np.ndarray, edges: np.ndarray, masses: np.ndarray, memory: np.ndarray | None
    ) -> np.ndarray:
        common, lower = _neighbours(adjacency, edges)
        return 1.5 * common + 10 * np.maximum(common - 2, 0) + lower


class Interior(Coarsening):
    """10 |c - 2| + min degree, where c is the number of common neighbours of the edge's ends.

    In a triangulated region, the interior (edges with a triangle on either side) is contracted first and the border
    last. Run backwards, the border, and with it the number of edges, is settled while the graph is small, and each
    split in the interior adds three edges. (If the border were contracted early, it would become a triangle like any
    other, and nothing would tell where it was.)
    """

    def costs(
        self, adjacency: np.ndarray, edges: np.ndarray, masses: np.ndarray, memory: np.ndarray | None
    ) -> np.ndarray:
        common, lower = _neighbours(adjacency, edges)
        return 10 * np.abs(common - 2) + lower


class Random(Coarsening):
    """All edges cost the same, so chance decides."""

    def costs(
        self, adjacency: np.ndarray, edges: np.ndarray, masses: np.ndarray, memory: np.ndarray | None
    ) -> np.ndarray:
        return np.zeros(edges.shape[1])


class Communities(Coarsening):
    """Edges inside communities (found once, by Louvain) while there are any, then edges between communities. In both
    cases the lightest go first, by the number of nodes that their ends stand for.

    Run backwards, it is mostly the heaviest node that splits, into halves. A node's mass then tells whether the node is
    several communities, one, or a part of one. Where its edges go depends on masses alone, not on which edges were
    found to be alike.
    """

    def begin(self, adjacency: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        graph = nx.from_numpy_array(adjacency)
        member = np.zeros(len(adjacency), np.int64)
        for number, community in enumerate(nx.community.louvain_communities(graph, seed=int(rng.integers(2**31)))):
            member[list(community)] = number
        return member

    def costs(
        self, adjacency: np.ndarray, edges: np.ndarray, masses: np.ndarray, memory: np.ndarray | None
    ) -> np.ndarray:
        assert memory is not None
        inside = memory[edges[0]] == memory[edges[1]]
        return np.where(inside | ~inside.any(), masses[edges].sum(0), np.inf)


def _neighbours(adjacency: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of E edges: the number of common neighbours of its ends, and the smaller of their degrees."""
    rows = adjacency.astype(np.float32)
    degree = rows.sum(1)
    return (rows[edges[0]] * rows[edges[1]]).sum(1), np.minimum(degree[edges[0]], degree[edges[1]])


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
    adjacency: np.ndarray, method: Coarsening, ratio: float, rng: np.random.Generator
) -> tuple[int, list[Level], np.ndarray]:
    """Contract a graph, N N booleans, and describe the way back.

    Returns:
        the number of components; the expansions, coarsest first; and the final node order: node i of the grown graph is
        node ``order[i]`` of the given graph.
    """
    steps, current, memory = [], adjacency, method.begin(adjacency, rng)
    masses = np.ones(len(adjacency), np.int64)
    while current.any():
        pairs = independent_edges(current, method, masses, memory, ratio, rng)
        coarse, parents = contract(current, pairs)
        steps.append((current, masses, pairs, parents))
        masses = np.bincount(parents, masses).astype(np.int64)
        if memory is not None:
            inherited = np.zeros(len(coarse), memory.dtype)
            inherited[parents] = memory
            memory = inherited
        current = coarse
    order = rng.permutation(len(current))
    levels = []
    for fine, masses, pairs, parents in reversed(steps):
        level, order = _expand(fine, masses, pairs, parents, order, rng)
        levels.append(level)
    return len(current), levels, order


def independent_edges(
    adjacency: np.ndarray,
    method: Coarsening,
    masses: np.ndarray,
    memory: np.ndarray | None,
    ratio: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """M 2: the cheapest edges of which no two are adjacent or joined by an edge. There are at most ``ratio`` of the
    nodes (rounded up) and at least one, none of infinite cost."""
    edges = np.stack(np.nonzero(np.triu(adjacency)))
    wanted = math.ceil(len(adjacency) * ratio)
    blocked, chosen = np.zeros(len(adjacency), bool), []
    costs = method.costs(adjacency, edges, masses, memory) + rng.random(edges.shape[1])
    for e in np.argsort(costs, kind="stable")[: np.isfinite(costs).sum()]:
        a, b = edges[:, e]
        if blocked[a] or blocked[b]:
            continue
        chosen.append((a, b))
        if len(chosen) == wanted:
            break
        blocked |= adjacency[a] | adjacency[b]
    return np.array(chosen)


def contract(adjacency: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The graph in which each pair is merged into one node; and N integers, the node that each old node became."""
    gone = np.zeros(len(adjacency), bool)
    gone[pairs[:, 1]] = True
    parents = np.cumsum(~gone) - 1
    parents[pairs[:, 1]] = parents[pairs[:, 0]]
    merged = adjacency.copy()
    merged[pairs[:, 0]] |= adjacency[pairs[:, 1]]
    merged[:, pairs[:, 0]] |= merged[:, pairs[:, 1]]
    coarse = merged[np.ix_(~gone, ~gone)]
    np.fill_diagonal(coarse, False)
    return coarse, parents


def _expand(
    fine: np.ndarray,
    masses: np.ndarray,
    pairs: np.ndarray,
    parents: np.ndarray,
    order: np.ndarray,
    rng: np.random.Generator,
) -> tuple[Level, np.ndarray]:
    """The expansion from the coarse nodes, placed as in ``order``, to the fine nodes; and the order of the fine
    nodes."""
    children: dict[int, tuple[int, int]] = {}
    for (a, b), swap in zip(pairs.tolist(), rng.random(len(pairs)) < 0.5, strict=True):
        children[int(parents[a])] = (b, a) if swap else (a, b)
    alone = np.zeros(len(order), np.int64)
    alone[parents] = np.arange(len(parents))
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    level, grown = Level([], [], []), []
    for place, node in enumerate(order.tolist()):
        if node not in children:
            grown.append(int(alone[node]))
            continue
        first, second = children[node]
        grown += [first, second]
        level.splits.append(place)
        level.masses.append(int(masses[first]))
        near = np.flatnonzero(fine[first] | fine[second])
        near = near[(near != first) & (near != second)]
        near = near[np.argsort(position[parents[near]])]
        level.patterns += np.where(fine[first, near], np.where(fine[second, near], BOTH, FIRST), SECOND).tolist()
    return level, np.array(grown, np.int64)
