"""Random graphs for the tests of the graph plugin."""

from __future__ import annotations

import networkx as nx
import numpy as np

from nextscale_graph.graphs import GraphBatch, from_networkx


def random_graph(rng: np.random.Generator, largest: int, typed: bool = False) -> nx.Graph:
    """A graph of 1 to ``largest`` nodes: sparse or dense, connected or not."""
    size = int(rng.integers(1, largest + 1))
    graph = nx.gnp_random_graph(
        size, float(rng.choice([0.0, 1 / size, 2 / size, 0.5, 1.0])), seed=int(rng.integers(2**31))
    )
    if typed:
        nx.set_node_attributes(graph, {node: int(rng.integers(3)) for node in graph}, "type")
        nx.set_edge_attributes(graph, {edge: int(rng.integers(2)) for edge in graph.edges}, "type")
    return graph


def random_batch(seed: int, count: int, largest: int, typed: bool = False) -> GraphBatch:
    rng = np.random.default_rng(seed)
    return from_networkx([random_graph(rng, largest, typed) for _ in range(count)])
