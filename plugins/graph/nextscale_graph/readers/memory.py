"""Graphs in memory: of networkx, of torch-geometric, or batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from torch_geometric.data import Data

from nextscale.plugin import DataError
from nextscale_graph import writers
from nextscale_graph.graphs import GraphBatch, concatenate
from nextscale_graph.readers.assemble import assemble, finish, tabulate_properties
from nextscale_graph.readers.geometric import from_data
from nextscale_graph.readers.markup import convert
from nextscale_graph.readers.raw import RawGraphs
from nextscale_graph.readers.rules import Rules


def from_memory(
    graphs: Sequence[Any] | GraphBatch,
    labels: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    rules: Rules | None = None,
) -> RawGraphs:
    """Graphs with their names, attributes and properties.

    Args:
        graphs: all of networkx (attributes of nodes, edges and the graph), or all of torch-geometric (``Data``), or
            batches of graphs.
        labels: one value per graph, which becomes the property ``label``; or several properties by name.
        rules: how they are read.

    Raises:
        DataError: there are none, they are of different kinds, or one cannot be read (``readers.raw``).
    """
    rules = rules or Rules()
    batches = [graphs] if isinstance(graphs, GraphBatch) else list(graphs)
    if not batches or not sum(len(one) if isinstance(one, GraphBatch) else 1 for one in batches):
        raise DataError("there are no graphs")
    kinds = {next((kind for kind in (nx.Graph, Data, GraphBatch) if isinstance(one, kind)), None) for one in batches}
    if len(kinds) > 1 or None in kinds:
        wrong = sorted({type(one).__name__ for one in batches})
        raise DataError(
            f"graphs should be all of networkx, all of torch-geometric (Data) or all batches, not {', '.join(wrong)}"
        )
    wheres = [f"graph {i}" for i in range(len(batches))]
    if kinds == {Data}:
        raw = from_data(batches, wheres, rules)
    elif kinds == {GraphBatch}:
        whole = concatenate(batches)
        raw = RawGraphs(
            [whole[[i]] for i in range(len(whole))],
            node_types=list(whole.node_names) or _numbered(whole.node_types),
            edge_types=list(whole.edge_names) or _numbered(whole.edge_types),
        )
    else:
        found = []
        for graph, where in zip(batches, wheres, strict=True):
            assert isinstance(graph, nx.Graph)
            if graph.is_directed() and "direction" not in rules.clean:
                raise DataError(f"{where} is directed: only undirected graphs are modelled (graph.to_undirected())")
            rules.cleaned["direction"] += graph.is_directed()
            found.append(convert(graph, Path(where), rules))
        raw = assemble(found, rules)
    return finish(_labelled(raw, labels, rules), rules, "graphs")


def write_npz(
    graphs: Sequence[Any] | GraphBatch,
    path: Path,
    labels: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    rules: Rules | None = None,
) -> Path:
    """Write graphs as ``from_memory`` takes them to an .npz file, which ``data=`` reads."""
    return writers.write_npz(concatenate(from_memory(graphs, labels, rules).graphs), path)


def _labelled(raw: RawGraphs, labels: Any, rules: Rules) -> RawGraphs:
    if labels is None:
        return raw
    columns = dict(labels) if isinstance(labels, Mapping) else {"label": labels}
    for name, values in columns.items():
        if len(values) != len(raw.graphs):
            raise DataError(f"{name} has {len(values)} values for {len(raw.graphs)} graphs: give one for each")
    plain = {str(name): np.asarray(values).tolist() for name, values in columns.items()}
    whole = concatenate(raw.graphs)
    if whole.graph_values is not None:
        own = zip(whole.graph_attributes, whole.graph_values.T, strict=True)
        plain = {one.name: one.values(column) for one, column in own} | plain
    rows = [{name: values[i] for name, values in plain.items()} for i in range(len(raw.graphs))]
    asked = Rules(rules.limits, properties=tuple(plain))
    found, table = tabulate_properties(rows, [f"graph {i}" for i in range(len(rows))], asked)
    assert table is not None
    for i, graph in enumerate(raw.graphs):
        graph.graph_attributes, graph.graph_values = found, table[i : i + 1]
    return raw


def _numbered(types: Any) -> list[str]:
    return [] if types is None else [str(i) for i in range(int(types.max()) + 1 if len(types) else 1)]
