"""A batch of graphs in flat arrays, and its conversion to and from torch-geometric and networkx."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch as PyGBatch
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from nextscale.plugin import DataError, to_device
from nextscale_graph.attributes import Attribute


@dataclass
class GraphBatch:
    """B simple undirected graphs.

    Shapes:
        sizes: B, the number of nodes of each graph.
        edges: 2 E, each undirected edge once, smaller id first. Ids count within a graph; edges are sorted within a
            graph.
        edge_counts: B, the number of edges of each graph.
        node_types: N integers (N nodes in all); None if nodes have no types.
        edge_types: E integers; None if edges have no types.
        seeds: B (int64), the seed of each graph's coarsening; None means 0.
        lineage: N integers. As a graph grows, the first child of a node keeps its number and the second child gets a
            new one; None if the graphs were not grown.
        node_names, edge_names: names of the types, where they are known.
        node_values, edge_values, graph_values: N A, E A' and B A" (float64), the values of all other attributes. They
            stay on the CPU, because not every device has float64. None if there are none.
        node_attributes, edge_attributes, graph_attributes: what their columns are.
        given: N names, of the nodes that a completion was given, as their file calls them, and "" for all others; empty
            if nothing was given.
    """

    sizes: Tensor
    edges: Tensor
    edge_counts: Tensor
    node_types: Tensor | None = None
    edge_types: Tensor | None = None
    seeds: Tensor | None = None
    lineage: Tensor | None = None
    node_names: tuple[str, ...] = ()
    edge_names: tuple[str, ...] = ()
    node_values: np.ndarray | None = None
    edge_values: np.ndarray | None = None
    graph_values: np.ndarray | None = None
    node_attributes: tuple[Attribute, ...] = ()
    edge_attributes: tuple[Attribute, ...] = ()
    graph_attributes: tuple[Attribute, ...] = ()
    given: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str) -> GraphBatch:
        moved = {name: to_device(part, device) for name, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **moved)

    def __getitem__(self, rows: slice | Sequence[int]) -> GraphBatch:
        """The chosen graphs, as a batch."""
        chosen = range(len(self))[rows] if isinstance(rows, slice) else rows
        singles = [self._single(i) for i in chosen]
        return concatenate(singles) if singles else self._empty()

    def _empty(self) -> GraphBatch:
        none = self.sizes[:0]
        rest = ("node_types", "edge_types", "seeds", "lineage", *VALUES)
        parts = {name: None if (part := getattr(self, name)) is None else part[:0] for name in rest}
        return replace(self, sizes=none, edges=self.edges[:, :0], edge_counts=none, given=(), **parts)

    def _single(self, i: int) -> GraphBatch:
        edges, nodes = self._edge_span(i), self._node_span(i)
        return replace(
            self,
            **{
                name: None if (values := getattr(self, name)) is None else values[rows]
                for name, rows in zip(VALUES, (nodes, edges, slice(i, i + 1)), strict=True)
            },
            sizes=self.sizes[i : i + 1],
            edges=self.edges[:, edges],
            edge_counts=self.edge_counts[i : i + 1],
            node_types=None if self.node_types is None else self.node_types[nodes],
            edge_types=None if self.edge_types is None else self.edge_types[edges],
            seeds=None if self.seeds is None else self.seeds[i : i + 1],
            lineage=None if self.lineage is None else self.lineage[nodes],
            given=self.given[nodes],
        )

    def _edge_span(self, i: int) -> slice:
        start = int(self.edge_counts[:i].sum())
        return slice(start, start + int(self.edge_counts[i]))

    def _node_span(self, i: int) -> slice:
        start = int(self.sizes[:i].sum())
        return slice(start, start + int(self.sizes[i]))

    def to_data_list(self) -> list[Data]:
        """As torch-geometric graphs: ``edge_index`` in both directions, ``x`` node types N 1, ``edge_attr`` edge types
        E 1. If there are other attributes, these are columns of float64, behind the types. ``y`` is 1 A, the attributes
        of the graph. Categories are numbers."""
        found = []
        for i in range(len(self)):
            one = self._single(i)
            nodes, attributes = (
                _columns(types, values)
                for types, values in ((one.node_types, one.node_values), (one.edge_types, one.edge_values))
            )
            edges = to_undirected(one.edges) if attributes is None else to_undirected(one.edges, attributes)
            edges, attributes = edges if isinstance(edges, tuple) else (edges, None)
            more = {} if one.graph_values is None else {"y": torch.from_numpy(one.graph_values)}
            found.append(Data(x=nodes, edge_index=edges, edge_attr=attributes, num_nodes=int(one.sizes[0]), **more))
        return found

    def to_pyg(self) -> PyGBatch:
        """As one batch of torch-geometric graphs (``to_data_list``); ``from_pyg`` is the way back."""
        return PyGBatch.from_data_list(list(self.to_data_list()))

    def to_networkx(self) -> list[nx.Graph]:
        """As networkx graphs with their attributes; types become the attribute ``type`` of nodes and edges, by
        number, and names of given nodes their attribute ``given``."""
        found = []
        for i in range(len(self)):
            one = self._single(i)
            graph = nx.Graph()
            for column, attribute in enumerate(one.graph_attributes if one.graph_values is not None else ()):
                known = one.graph_values[:, column] if one.graph_values is not None else np.zeros(0)
                if np.isfinite(known).all():  # properties that were not asked for are unknown
                    graph.graph[attribute.name] = attribute.values(known)[0]
            nodes = _rows(one.node_types, one.node_values, one.node_attributes, int(one.sizes[0]))
            graph.add_nodes_from(enumerate(nodes))
            nx.set_node_attributes(graph, {node: name for node, name in enumerate(one.given) if name}, "given")
            edges = _rows(one.edge_types, one.edge_values, one.edge_attributes, one.edges.shape[1])
            graph.add_edges_from((a, b, row) for (a, b), row in zip(one.edges.T.tolist(), edges, strict=True))
            found.append(graph)
        return found


VALUES = ("node_values", "edge_values", "graph_values")


def _columns(types: Tensor | None, values: np.ndarray | None) -> Tensor | None:
    """Types and values as one table; types alone stay integers."""
    if values is None:
        return None if types is None else types[:, None]
    table = torch.from_numpy(values)
    return table if types is None else torch.cat([types[:, None].to(table), table], 1)


def _rows(
    types: Tensor | None, values: np.ndarray | None, attributes: Sequence[Attribute], count: int
) -> list[dict[str, Any]]:
    """The attributes of each of ``count`` nodes or edges, by name."""
    columns: dict[str, list[Any]] = {} if types is None else {"type": types.tolist()}
    if values is not None:
        columns |= {one.name: one.values(values[:, i]) for i, one in enumerate(attributes)}
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def concatenate(batches: Sequence[GraphBatch]) -> GraphBatch:
    """Join batches into one, on the device of the first. What some of them lack, the result lacks; names of types, and
    what attributes are, are the first batch's."""
    first = batches[0]

    def join(name: str, dim: int = 0) -> Tensor | None:
        parts = [getattr(batch, name) for batch in batches]
        return (
            None if any(part is None for part in parts) else torch.cat([p.to(first.sizes.device) for p in parts], dim)
        )

    whole = {name: join(name) for name in ("sizes", "edge_counts", "node_types", "edge_types", "seeds", "lineage")}
    tables = {name: [getattr(batch, name) for batch in batches] for name in VALUES}
    values = {
        name: None if any(part is None for part in parts) else np.concatenate(parts) for name, parts in tables.items()
    }
    given = tuple(name for batch in batches for name in batch.given) if all(batch.given for batch in batches) else ()
    return replace(first, edges=join("edges", 1), given=given, **whole, **values)


def single(
    num_nodes: int,
    edges: np.ndarray | Tensor,
    node_types: np.ndarray | None = None,
    edge_types: np.ndarray | None = None,
    node_values: np.ndarray | None = None,
    edge_values: np.ndarray | None = None,
) -> GraphBatch:
    """A batch of one graph from any list of edges, 2 E. Edges are sorted; self-loops are dropped, and duplicates but
    for the first."""
    pairs = np.asarray(edges, np.int64).reshape(2, -1)
    low, high = pairs.min(0), pairs.max(0)
    real = low != high
    keys, first = np.unique((low * num_nodes + high)[real], return_index=True)
    types = None if edge_types is None else torch.from_numpy(np.asarray(edge_types, np.int64)[real][first])
    return GraphBatch(
        torch.tensor([num_nodes]),
        torch.from_numpy(np.stack([keys // max(num_nodes, 1), keys % max(num_nodes, 1)])),
        torch.tensor([len(keys)]),
        None if node_types is None else torch.from_numpy(np.asarray(node_types, np.int64)),
        types,
        node_values=node_values,
        edge_values=None if edge_values is None else edge_values[real][first],
    )


def from_pyg(graphs: PyGBatch | Sequence[Data]) -> GraphBatch:
    """A batch of undirected torch-geometric graphs: the structure, and types from one column of integers in ``x`` and
    ``edge_attr`` where they hold such.

    Raises:
        DataError: a graph is directed.
    """
    found = []
    for i, data in enumerate(graphs.to_data_list() if isinstance(graphs, PyGBatch) else graphs):
        edges = torch.zeros(2, 0, dtype=torch.long) if data.edge_index is None else data.edge_index.cpu()
        if edges.shape[1] and data.is_directed():
            raise DataError(f"graph {i} is directed: only undirected graphs are modelled")
        once = edges[0] < edges[1]
        nodes, kinds = _column(data.x), _column(data.edge_attr)
        found.append(single(int(data.num_nodes or 0), edges[:, once], nodes, None if kinds is None else kinds[once]))
    return concatenate(found)


def _column(values: Tensor | None) -> np.ndarray | None:
    whole = values is not None and not values.is_floating_point() and values.dim() == 2 and values.shape[1] == 1
    return values[:, 0].cpu().numpy() if whole and values is not None else None


def from_networkx(graphs: Sequence[nx.Graph]) -> GraphBatch:
    """A batch of networkx graphs, with the attribute ``type`` where it is an integer, and no others
    (``readers.memory`` reads all). Nodes are numbered in networkx's order."""
    found = []
    for graph in graphs:
        ids = {node: i for i, node in enumerate(graph.nodes)}
        pairs = np.array([(ids[a], ids[b]) for a, b in graph.edges], np.int64).reshape(-1, 2).T
        nodes = [data.get("type") for _, data in graph.nodes(data=True)]
        edges = [data.get("type") for _, _, data in graph.edges(data=True)]
        typed = len(nodes) > 0 and None not in nodes
        found.append(
            single(
                len(ids),
                pairs,
                np.array(nodes, np.int64) if typed else None,
                np.array(edges, np.int64) if typed and None not in edges else None,
            )
        )
    return concatenate(found)
