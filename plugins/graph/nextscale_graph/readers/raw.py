"""What readers return, and the checks that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from nextscale.plugin import DataError, shown_path
from nextscale_graph.config import GraphLimitsConfig
from nextscale_graph.graphs import GraphBatch, single

SPLITS = ("train", "val", "test")
KINDS = ("planar", "tree", "sbm", "molecule")
"""Sources that have a test of validity."""


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

    def __post_init__(self) -> None:
        """Nodes and edges have types together: where the data has types for one only, all of the other get one type.
        Every graph carries the names."""
        if self.node_types and not self.edge_types:
            self.edge_types = ["edge"]
            self.graphs = [replace(one, edge_types=one.edges[0] * 0) for one in self.graphs]
        if self.edge_types and not self.node_types:
            self.node_types = ["node"]
            self.graphs = [replace(one, node_types=one.sizes.new_zeros(int(one.sizes[0]))) for one in self.graphs]
        names = {"node_names": tuple(self.node_types), "edge_names": tuple(self.edge_types)}
        self.graphs = [replace(one, **names) for one in self.graphs]


@dataclass
class FileGraph:
    """One graph as a file describes it: names of nodes in the order of the file, edges as positions in them, and names
    of types where the file has types."""

    names: list[str]
    edges: list[tuple[int, int]]
    node_types: list[str] | None = None
    edge_types: list[str] | None = None

    def batch(self, node_types: Sequence[str] = (), edge_types: Sequence[str] = ()) -> GraphBatch:
        """A batch of one, with types as positions in the given names."""
        nodes = {name: i for i, name in enumerate(node_types)}
        edges = {name: i for i, name in enumerate(edge_types)}
        return single(
            len(self.names),
            np.array(self.edges, np.int64).reshape(-1, 2).T,
            np.array([nodes[name] for name in self.node_types or ()], np.int64) if nodes else None,
            np.array([edges[name] for name in self.edge_types or ()], np.int64) if edges else None,
        )


class Builder:
    """Collects the nodes and edges of one file, and refuses what makes no simple graph at the line where it stands."""

    def __init__(self, path: Path, limits: GraphLimitsConfig) -> None:
        self.path, self.limits = path, limits
        self.ids: dict[str, int] = {}
        self.edges: dict[tuple[int, int], int | None] = {}

    def node(self, name: str, line: int | None = None) -> int:
        """The number of the node called ``name``, which is new or known."""
        if name not in self.ids:
            if len(self.ids) >= self.limits.nodes:
                check_size(self.at(line), len(self.ids) + 1, 0, self.limits)
            self.ids[name] = len(self.ids)
        return self.ids[name]

    def edge(self, one: str, other: str, line: int | None = None) -> None:
        a, b = self.node(one, line), self.node(other, line)
        if a == b:
            raise DataError(f"{self.at(line)} has a self-loop at node {one}: only simple graphs are modelled")
        pair = (min(a, b), max(a, b))
        if pair in self.edges:
            first = f", first in line {self.edges[pair]}" if self.edges[pair] else ""
            raise DataError(
                f"{self.at(line)} has the edge {one}-{other} twice{first}: give each undirected edge once "
                "(no multi-edges, no edge in both directions)"
            )
        if len(self.edges) >= self.limits.edges:
            check_size(self.at(line), 0, len(self.edges) + 1, self.limits)
        self.edges[pair] = line

    def at(self, line: int | None) -> str:
        return shown_path(self.path) + (f", line {line}," if line else "")

    def graph(self) -> FileGraph:
        """Raises DataError if there are no nodes."""
        if not self.ids:
            raise DataError(f"{shown_path(self.path)} has no nodes: leave it out")
        return FileGraph(list(self.ids), list(self.edges))


def check_size(where: str, nodes: int, edges: int, limits: GraphLimitsConfig) -> None:
    """Raises DataError if a graph is larger than the limits allow."""
    for what, number, limit in (("nodes", nodes, limits.nodes), ("edges", edges, limits.edges)):
        if number > limit:
            raise DataError(f"{where} has {number:,} {what} or more, beyond data.limits.{what}={limit:,}")


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
        wrong = edges[(edges < 0) | (edges >= num_nodes)][0]
        raise DataError(f"{where} has an edge at node {wrong}; its {num_nodes} nodes are numbered from 0")
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
