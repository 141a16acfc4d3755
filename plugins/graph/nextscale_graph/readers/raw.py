"""What readers return, and the checks that all of them need."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nextscale.plugin import DataError
from nextscale_graph.graphs import GraphBatch, single

SPLITS = ("train", "val", "test")


@dataclass
class RawGraphs:
    """Graphs (batches of one), the split each is in (``train``, ``val``, ``test``; None where the data has none), what
    types of nodes and edges are called, and what makes such a graph valid."""

    graphs: list[GraphBatch]
    splits: list[str] | None = None
    node_types: list[str] = field(default_factory=list)
    edge_types: list[str] = field(default_factory=list)
    kind: str = "none"


def checked(
    where: str,
    num_nodes: int,
    edges: np.ndarray,
    node_types: np.ndarray | None = None,
    edge_types: np.ndarray | None = None,
) -> GraphBatch:
    """A simple undirected graph from edges 2 E, each given once.

    Raises:
        DataError: no nodes, a node out of range, a self-loop, or an edge given twice.
    """
    if num_nodes < 1:
        raise DataError(f"{where} has no nodes: leave it out")
    if edges.size and not 0 <= edges.min() <= edges.max() < num_nodes:
        raise DataError(f"{where} has an edge of node {edges.max()}; its {num_nodes} nodes are numbered from 0")
    loops = edges[0][edges[0] == edges[1]]
    if len(loops):
        raise DataError(f"{where} has a self-loop at node {loops[0]}: only simple graphs are modelled, remove it")
    low, high = edges.min(0), edges.max(0)
    keys, first, counts = np.unique(low * num_nodes + high, return_index=True, return_counts=True)
    if len(keys) < edges.shape[1]:
        twice = first[counts > 1][0]
        raise DataError(
            f"{where} has the edge {low[twice]}-{high[twice]} twice (multi-edges, or both directions of each edge): "
            "give each undirected edge once"
        )
    return single(num_nodes, edges, node_types, edge_types)
