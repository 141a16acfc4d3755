"""What readers return, and the checks that they share."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nextscale.plugin import DataError
from nextscale_graph.graphs import GraphBatch, single

SPLITS = ("train", "val", "test")


@dataclass
class RawGraphs:
    """Graphs as a reader returns them.

    ``graphs`` are batches of one. ``splits`` is the split of each (``train``, ``val``, ``test``); None if the data has
    no splits. ``node_types`` and ``edge_types`` are the names of the types. ``kind`` selects the validity test.
    """

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
        DataError: there are no nodes, a node is out of range, or an edge is a self-loop or given twice.
    """
    if num_nodes < 1:
        raise DataError(f"{where} has no nodes: leave it out")
    if edges.size and not 0 <= edges.min() <= edges.max() < num_nodes:
        raise DataError(f"{where} has an edge at node {edges.max()}; its {num_nodes} nodes are numbered from 0")
    loops = edges[0][edges[0] == edges[1]]
    if len(loops):
        raise DataError(f"{where} has a self-loop at node {loops[0]}: remove it; only simple graphs are modelled")
    low, high = edges.min(0), edges.max(0)
    keys, first, counts = np.unique(low * num_nodes + high, return_index=True, return_counts=True)
    if len(keys) < edges.shape[1]:
        twice = first[counts > 1][0]
        raise DataError(
            f"{where} has the edge {low[twice]}-{high[twice]} twice (multi-edges, or both directions of each edge): "
            "give each undirected edge once"
        )
    return single(num_nodes, edges, node_types, edge_types)
