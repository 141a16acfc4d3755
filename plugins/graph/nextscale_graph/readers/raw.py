"""What readers return, and the checks that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nextscale.plugin import DataError, shown_path
from nextscale_graph.config import GraphLimitsConfig
from nextscale_graph.graphs import GraphBatch, single
from nextscale_graph.readers.rules import Rules
from nextscale_graph.readers.tables import Columns

SPLITS = ("train", "val", "test")
KINDS = ("planar", "tree", "sbm", "molecule")
"""Sources that have a test of validity."""


@dataclass
class RawGraphs:
    """Graphs as a reader returns them.

    ``graphs`` are batches of one, with their attributes and properties. ``splits`` is the split of each (``train``,
    ``val``, ``test``); None if the data has no splits. ``node_types`` and ``edge_types`` are the names of the types.
    ``kind`` selects the validity test.
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
    """One graph as a file describes it.

    ``names`` are the names of nodes in the order of the file, ``edges`` positions in them. ``node_types`` and
    ``edge_types`` are names, where the file has types; ``node_columns`` and ``edge_columns`` are all other attributes,
    and ``properties`` those of the graph.
    """

    where: str
    names: list[str]
    edges: list[tuple[int, int]]
    node_types: list[str] | None = None
    edge_types: list[str] | None = None
    node_columns: Columns = field(default_factory=dict)
    edge_columns: Columns = field(default_factory=dict)
    properties: dict[str, Any] = field(default_factory=dict)

    def edge_name(self, j: int) -> str:
        return "-".join(self.names[i] for i in self.edges[j])


class Builder:
    """Collects the nodes and edges of one file. What makes no simple graph is refused at the line where it stands, or
    mended (``Rules.clean``)."""

    def __init__(self, path: Path, rules: Rules) -> None:
        self.path, self.rules = path, rules
        self.ids: dict[str, int] = {}
        self.edges: dict[tuple[int, int], tuple[int | None, bool]] = {}
        self.rows: list[Mapping[str, Any]] = []

    def node(self, name: str, line: int | None = None) -> int:
        """The number of the node called ``name``, which is new or known."""
        if name not in self.ids:
            if len(self.ids) >= self.rules.limits.nodes:
                check_size(self.at(line), len(self.ids) + 1, 0, self.rules.limits)
            self.ids[name] = len(self.ids)
        return self.ids[name]

    def edge(self, one: str, other: str, line: int | None = None, values: Mapping[str, Any] | None = None) -> None:
        """Add an edge with the ``values`` of its attributes."""
        a, b = self.node(one, line), self.node(other, line)
        clean, cleaned = self.rules.clean, self.rules.cleaned
        if a == b:
            if "loops" not in clean:
                raise DataError(
                    f"{self.at(line)} has a self-loop at node {one}: only simple graphs are modelled "
                    "(data.clean=loops drops it)"
                )
            cleaned["loops"] += 1
            return
        pair = (min(a, b), max(a, b))
        if pair in self.edges:
            first, forwards = self.edges[pair]
            turned = forwards != (a < b)
            if "duplicates" not in clean and not (turned and "direction" in clean):
                before = f", first in line {first}" if first else ""
                cure = "direction" if turned else "duplicates"
                raise DataError(
                    f"{self.at(line)} has the edge {one}-{other} twice{before}: give each undirected edge once "
                    f"(no multi-edges, no edge in both directions), or set data.clean={cure}"
                )
            cleaned["duplicates"] += not (turned and "direction" in clean)
            return
        if len(self.edges) >= self.rules.limits.edges:
            check_size(self.at(line), 0, len(self.edges) + 1, self.rules.limits)
        self.edges[pair] = line, a < b
        self.rows.append(values or {})

    def directed(self, where: str, hint: str = "") -> None:
        """Called once for a directed graph. Raises DataError unless direction is to be forgotten."""
        refuse_directed(where, self.rules, hint)

    def at(self, line: int | None) -> str:
        return shown_path(self.path) + (f", line {line}," if line else "")

    def graph(self) -> FileGraph:
        """Raises DataError if there are no nodes."""
        if not self.ids:
            raise DataError(f"{shown_path(self.path)} has no nodes: leave it out")
        columns = columns_of(self.rows)
        types = columns.pop("type", None)
        found = FileGraph(shown_path(self.path), list(self.ids), list(self.edges), edge_columns=columns)
        if self.rules.wants("type"):
            found.edge_types = types_of(types, "edge", found)
        return found


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows of values as columns; None where a row has no value."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def types_of(values: Sequence[Any] | None, of: str, graph: FileGraph) -> list[str] | None:
    """The types of all nodes or edges as texts; None if none has one.

    Raises:
        DataError: some have a type and others have none.
    """
    types = [None if value is None else str(value) for value in values or ()]
    if all(one is None for one in types):
        return [] if of == "edge" and not graph.edges else None
    if None in types:
        name = graph.edge_name(types.index(None)) if of == "edge" else graph.names[types.index(None)]
        raise DataError(f"{graph.where}: {of} {name} has no type, but others have: give all of them one, or none")
    return [str(one) for one in types]


def refuse_directed(where: str, rules: Rules, hint: str = "") -> None:
    """Raises DataError unless direction is to be forgotten, and counts the graph if so."""
    if "direction" not in rules.clean:
        raise DataError(
            f"{where} is directed: only undirected graphs are modelled "
            f"({hint}data.clean=direction forgets the direction)"
        )
    rules.cleaned["direction"] += 1


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
    node_values: np.ndarray | None = None,
    edge_values: np.ndarray | None = None,
    rules: Rules | None = None,
) -> GraphBatch:
    """A simple undirected graph from edges 2 E, each given once, unless ``rules`` mend it.

    Raises:
        DataError: there are no nodes, a node is out of range, or an edge is a self-loop or given twice.
    """
    rules = rules or Rules()
    if num_nodes < 1:
        raise DataError(f"{where} has no nodes: leave it out")
    if edges.size and not 0 <= edges.min() <= edges.max() < num_nodes:
        wrong = edges[(edges < 0) | (edges >= num_nodes)][0]
        raise DataError(f"{where} has an edge at node {wrong}; its {num_nodes} nodes are numbered from 0")
    loops = edges[0][edges[0] == edges[1]]
    if len(loops) and "loops" not in rules.clean:
        raise DataError(
            f"{where} has a self-loop at node {loops[0]}: remove it; only simple graphs are modelled "
            "(data.clean=loops drops it)"
        )
    rules.cleaned["loops"] += len(loops)
    low, high = edges.min(0), edges.max(0)
    keys, first, counts = np.unique(low * num_nodes + high, return_index=True, return_counts=True)
    if len(keys) < edges.shape[1]:
        real = keys // num_nodes != keys % num_nodes
        ways = np.unique(edges[0] * num_nodes + edges[1])
        repeated = edges.shape[1] - len(loops) - len(ways[ways // num_nodes != ways % num_nodes])
        turned = edges.shape[1] - len(loops) - int(real.sum()) - repeated
        both = "duplicates" in rules.clean
        if (repeated and not both) or (turned and not both and "direction" not in rules.clean):
            twice = first[(counts > 1) & real][0]
            raise DataError(
                f"{where} has the edge {low[twice]}-{high[twice]} twice (multi-edges, or both directions of edges): "
                f"give each undirected edge once, or set data.clean={'duplicates' if repeated else 'direction'}"
            )
        rules.cleaned["duplicates"] += repeated + (0 if "direction" in rules.clean else turned)
    return single(num_nodes, edges, node_types, edge_types, node_values, edge_values)
