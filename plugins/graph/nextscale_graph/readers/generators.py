"""Built-in data: random graphs made like the published benchmarks, from fixed seeds."""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx
import numpy as np
from scipy.spatial import Delaunay

from nextscale_graph.graphs import from_networkx
from nextscale_graph.readers.raw import RawGraphs

COUNTS = {"train": 128, "val": 32, "test": 40}
"""The same as in SPECTRE's data sets (https://arxiv.org/abs/2204.01613)."""


def planar(rng: np.random.Generator) -> nx.Graph:
    """The Delaunay triangulation of 64 points in the unit square."""
    graph = nx.Graph()
    graph.add_nodes_from(range(64))
    for a, b, c in Delaunay(rng.random((64, 2))).simplices.tolist():
        graph.add_edges_from([(a, b), (b, c), (a, c)])
    return graph


def tree(rng: np.random.Generator) -> nx.Graph:
    """A uniformly random labelled tree of 64 nodes, from its Prüfer code."""
    return nx.from_prufer_sequence(rng.integers(64, size=62).tolist())


def sbm(rng: np.random.Generator) -> nx.Graph:
    """A connected stochastic block model: 2 to 5 communities of 20 to 40 nodes, edge probability .3 within and .005
    between them."""
    sizes = rng.integers(20, 41, rng.integers(2, 6))
    while True:
        chance = np.full((len(sizes), len(sizes)), 0.005)
        np.fill_diagonal(chance, 0.3)
        graph = nx.stochastic_block_model(sizes.tolist(), chance.tolist(), seed=int(rng.integers(2**31)))
        if nx.is_connected(graph):
            return nx.Graph(graph.edges)


def community_small(rng: np.random.Generator) -> nx.Graph:
    """Two communities of 6 to 10 nodes, edge probability .7 within, joined by a twentieth as many edges as nodes, at
    least one."""
    half = int(rng.integers(6, 11))
    while True:
        parts = [nx.gnp_random_graph(half, 0.7, seed=int(rng.integers(2**31))) for _ in range(2)]
        graph = nx.disjoint_union(*parts)
        for _ in range(max(1, round(0.05 * 2 * half))):
            graph.add_edge(int(rng.integers(half)), half + int(rng.integers(half)))
        if nx.is_connected(graph):
            return graph


GENERATORS: dict[str, Callable[[np.random.Generator], nx.Graph]] = {
    "planar": planar,
    "tree": tree,
    "sbm": sbm,
    "community-small": community_small,
}


def generate(name: str) -> RawGraphs:
    """128 graphs for training, 32 for validation and 40 for testing, the same in every call."""
    graphs, splits = [], []
    for number, (split, count) in enumerate(COUNTS.items()):
        for i in range(count):
            graphs.append(GENERATORS[name](np.random.default_rng([number, i])))
            splits.append(split)
    kind = name if name in ("planar", "tree", "sbm") else "none"
    batch = from_networkx(graphs)
    return RawGraphs([batch[[i]] for i in range(len(batch))], splits, kind=kind)
