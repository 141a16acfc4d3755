"""The definition of coarsening, written down plainly with adjacency matrices and loops. ``coarsen`` must agree with it
token by token."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np

from nextscale_graph.coarsen import BOTH, FIRST, SECOND, Level


def costs(name: str, adjacency: np.ndarray, edges: np.ndarray, masses: np.ndarray, member: np.ndarray) -> np.ndarray:
    degree = adjacency.sum(1)
    common = np.array([(adjacency[a] & adjacency[b]).sum() for a, b in edges])
    lower = np.array([min(degree[a], degree[b]) for a, b in edges])
    if name == "cheapest":
        return 1.5 * common + 10 * np.maximum(common - 2, 0) + lower
    if name == "interior":
        return 10 * np.abs(common - 2) + lower
    if name == "communities":
        inside = np.array([member[a] == member[b] for a, b in edges])
        together = np.array([masses[a] + masses[b] for a, b in edges])
        return np.where(inside, together, np.inf) if inside.any() else together
    return np.zeros(len(edges))


def coarsen_plainly(
    graph: nx.Graph, name: str, ratio: float, rng: np.random.Generator
) -> tuple[int, list[Level], np.ndarray]:
    adjacency = nx.to_numpy_array(graph, nodelist=range(len(graph))).astype(bool)
    member, masses, steps = np.zeros(len(graph), int), np.ones(len(graph), int), []
    if name == "communities":
        found = nx.community.louvain_communities(nx.from_numpy_array(adjacency), seed=int(rng.integers(2**31)))
        for number, community in enumerate(found):
            member[list(community)] = number
    while adjacency.any():
        edges = np.argwhere(np.triu(adjacency))
        each = costs(name, adjacency, edges, masses, member) + rng.random(len(edges))
        pairs, blocked = [], np.zeros(len(adjacency), bool)
        for e in np.argsort(each, kind="stable"):
            a, b = edges[e].tolist()
            if np.isfinite(each[e]) and len(pairs) < math.ceil(ratio * len(adjacency)) and not blocked[[a, b]].any():
                pairs.append((a, b))
                blocked |= adjacency[a] | adjacency[b]
        merged = {b: a for a, b in pairs}
        stay = [node for node in range(len(adjacency)) if node not in merged]
        parents = np.array([stay.index(merged.get(node, node)) for node in range(len(adjacency))])
        steps.append((adjacency, masses, pairs, parents))
        coarse = np.zeros((len(stay), len(stay)), bool)
        for a, b in edges:
            if parents[a] != parents[b]:
                coarse[parents[a], parents[b]] = coarse[parents[b], parents[a]] = True
        masses = np.array([masses[parents == node].sum() for node in range(len(stay))])
        adjacency, member = coarse, member[stay]
    roots, order, levels = len(adjacency), rng.permutation(len(adjacency)).tolist(), []
    for fine, masses, pairs, parents in reversed(steps):
        swaps = rng.random(len(pairs)) < 0.5
        children = {parents[a]: (b, a) if swap else (a, b) for (a, b), swap in zip(pairs, swaps, strict=True)}
        level, grown = Level([], [], []), []
        for place, node in enumerate(order):
            grown += children.get(node, np.flatnonzero(parents == node).tolist())
            if node in children:
                first, second = children[node]
                level.splits.append(place)
                level.masses.append(int(masses[first]))
                near = {order.index(parents[other]): other for other in np.flatnonzero(fine[first] | fine[second])}
                for where in sorted(near):
                    if near[where] not in (first, second):
                        to = fine[first, near[where]], fine[second, near[where]]
                        level.patterns.append({(True, False): FIRST, (False, True): SECOND, (True, True): BOTH}[to])
        order = grown
        levels.append(level)
    return roots, levels, np.array(order)
