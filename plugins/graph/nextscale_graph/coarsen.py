"""Coarsening: contract independent edges, level after level, until one node a component is left.

Run backwards, a level is an expansion: some nodes split in two, the two are joined, and every edge that a split node
had goes to its first child, its second, or both. As no two contracted edges are adjacent, an edge has at most one split
end, so it has three ways to go. Contraction keeps planar graphs planar, trees trees, and components apart.
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
    """A strategy: what it costs to contract an edge. Every level contracts the cheapest independent edges."""

    def begin(self, adjacency: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        """What the strategy remembers of each node (N integers, inherited by what it is contracted to), or None."""
        return None

    @abstractmethod
    def costs(
        self, adjacency: np.ndarray, edges: np.ndarray, masses: np.ndarray, memory: np.ndarray | None
    ) -> np.ndarray:
        """E costs of the edges, 2 E, of a graph, N N booleans, of nodes that stand for N ``masses`` of the whole.

        What chance adds to each, U(0, 1), is not in them. Edges of infinite cost are left to later levels;
        one at least is of another."""


class Cheapest(Coarsening):
    """1.5 c + 10 max(c - 2, 0) + min degree, c the common neighbours of the edge's ends.

    So few edges are merged into one (each is a three-way choice later), and peripheral nodes go first.
    """

    def costs(
        self, adjacency: np.ndarray, edges: np.ndarray, masses: np.ndarray, memory: np.ndarray | None
    ) -> np.ndarray:
        common, lower = _neighbours(adjacency, edges)
        return 1.5 * common + 10 * np.maximum(common - 2, 0) + lower


class Interior(Coarsening):
    """10 |c - 2| + min degree, c the common neighbours of the edge's ends.

    Of a triangulated region the inside goes first, where an edge has a triangle on either side, and its border last: so
    backwards the border, and with it the number of edges, is settled while the graph is small, and splits inside add
    three edges each. (Contracted early, the border becomes a triangle like any other, and nothing tells where it was.)
    """

    def costs(
        self, adjacency: np.ndarray, edges: np.ndarray, masses: np.ndarray, memory: np.ndarray | None
    ) -> np.ndarray:
        common, lower = _neighbours(adjacency, edges)
        return 10 * np.abs(common - 2) + lower


class Random(Coarsening):
    """Any edge is as good as another."""

    def costs(
        self, adjacency: np.ndarray, edges: np.ndarray, masses: np.ndarray, memory: np.ndarray | None
    ) -> np.ndarray:
        return np.zeros(edges.shape[1])


class Communities(Coarsening):
    """Edges inside communities (Louvain's, found once) while there are any, then those between them; of either the
    lightest, by the nodes that their ends stand for.

    Backwards it is mostly the heaviest node that splits, and in halves: of a node's mass it can be told whether it is
    several communities, one, or a part of one, and where its edges go depends on masses alone, not on which edges were
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
    """E each: how many neighbours the ends of an edge have in common, and the smaller of their degrees."""
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
    """Raises ConfigError for an unknown name."""
    if name not in STRATEGIES:
        raise ConfigError(f"tokenizer.coarsening: {unknown('strategy', name, STRATEGIES)}")
    return STRATEGIES[name]()


@dataclass
class Level:
    """One expansion, in the order that tokens have: ``splits`` are the positions (ascending) of the coarse nodes that
    split, ``masses`` the number of nodes of the whole graph that the first child of each stands for, ``patterns`` where
    each of their edges goes, ordered by split node, then by neighbour."""

    splits: list[int]
    masses: list[int]
    patterns: list[int]


def coarsen(
    adjacency: np.ndarray, method: Coarsening, ratio: float, rng: np.random.Generator
) -> tuple[int, list[Level], np.ndarray]:
    """Contract a graph, N N booleans, and describe the way back.

    Returns:
        the number of components; the expansions, coarsest first; and the node order that they end in: position i of
        the grown graph is node ``order[i]`` of the one given.
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
    """M 2: the cheapest edges of which no two are adjacent or joined, up to ``ratio`` of the nodes, at least one, and
    none of infinite cost."""
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
    """The graph in which each pair is one node, and N integers: which node of it each old one became."""
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
    """The expansion from the coarse nodes, at ``order``'s positions, to the fine ones, and their order."""
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
