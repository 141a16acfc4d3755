"""Graphs of files become one data set: types and attributes have the same meaning in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nextscale.plugin import DataError, unknown
from nextscale_graph.attributes import Attribute
from nextscale_graph.graphs import GraphBatch, single
from nextscale_graph.readers.raw import FileGraph, RawGraphs
from nextscale_graph.readers.rules import Rules
from nextscale_graph.readers.tables import by_number, tabulate


def assemble(graphs: Sequence[FileGraph], rules: Rules, splits: list[str] | None = None) -> RawGraphs:
    """Raises DataError if some graphs have types or attributes that others lack, or if values are missing."""
    node_types, edge_types = (
        _names([getattr(one, f"{of}_types") for one in graphs], graphs, of) for of in ("node", "edge")
    )
    nodes, node_rows = tabulate(
        [one.node_columns for one in graphs],
        [len(one.names) for one in graphs],
        lambda i, j: f"{graphs[i].where}: node {graphs[i].names[j]}",
        "node",
        rules,
    )
    edges, edge_rows = tabulate(
        [one.edge_columns for one in graphs],
        [len(one.edges) for one in graphs],
        lambda i, j: f"{graphs[i].where}: edge {graphs[i].edge_name(j)}",
        "edge",
        rules,
    )
    properties, table = tabulate_properties([one.properties for one in graphs], [one.where for one in graphs], rules)
    batches = [
        replace(
            single(
                len(one.names),
                np.array(one.edges, np.int64).reshape(-1, 2).T,
                _numbers(one.node_types, node_types),
                _numbers(one.edge_types, edge_types),
                None if node_rows is None else node_rows[i],
                None if edge_rows is None else edge_rows[i],
            ),
            node_attributes=nodes,
            edge_attributes=edges,
            graph_attributes=properties,
            graph_values=None if table is None else table[i : i + 1],
        )
        for i, one in enumerate(graphs)
    ]
    return RawGraphs(batches, splits, node_types, edge_types)


def _numbers(types: Sequence[str] | None, names: Sequence[str]) -> np.ndarray | None:
    place = {name: i for i, name in enumerate(names)}
    return np.array([place[name] for name in types or ()], np.int64) if names else None


def _names(types: Sequence[list[str] | None], graphs: Sequence[FileGraph], of: str) -> list[str]:
    """The names of all types; none if the graphs have no types. A graph without edges has types of edges or not."""
    known = [one for one in types if one]
    if not known:
        return []
    if None in types:
        without, having = graphs[types.index(None)], graphs[next(i for i, one in enumerate(types) if one)]
        name = having.where.replace("\\", "/").rpartition("/")[2]
        raise DataError(f"{without.where} has no {of} types, but {name} has: give them to all, or to none")
    return sorted({name for one in known for name in one}, key=by_number)


def tabulate_properties(
    properties: Sequence[Mapping[str, Any]], wheres: Sequence[str], rules: Rules
) -> tuple[tuple[Attribute, ...], np.ndarray | None]:
    """What the wanted properties are, in the order in which they are named, and their values, G P.

    Raises:
        DataError: a property that is asked for does not exist, or a graph lacks it.
    """
    known = dict.fromkeys(name for each in properties for name in each)
    wanted = list(known) if rules.properties is None else list(rules.properties)
    columns: dict[str, list[Any]] = {}
    for name in wanted:
        values = [each.get(name) for each in properties]
        plain = all(isinstance(value, str | bool | int | float | np.generic) for value in values)
        if rules.properties is None:
            if plain and not any(isinstance(value, float) and not np.isfinite(value) for value in values):
                columns[name] = values
            continue
        if name not in known:
            raise DataError(f"data.property: {unknown('property', name, known)}")
        if not plain:
            i = next(
                i for i, value in enumerate(values) if not isinstance(value, str | bool | int | float | np.generic)
            )
            raise DataError(f"{wheres[i]} has no {name}: data.property={name} needs one text or number for every graph")
        columns[name] = values
    if not columns:
        return (), None
    own = Rules(rules.limits, attributes=tuple(columns))
    renamed = {f"property {name}": values for name, values in columns.items()}  # "type" is a property like any other
    own.attributes = tuple(renamed)
    found, rows = tabulate([renamed], [len(properties)], lambda _, j: wheres[j], "graph", own)
    assert rows is not None
    return tuple(replace(each, name=each.name.removeprefix("property ")) for each in found), rows[0]


def largest_component(graph: GraphBatch, rules: Rules) -> GraphBatch:
    """The largest component of a batch of one graph; the first of several that are equally large."""
    size, edges = int(graph.sizes[0]), graph.edges.numpy()
    ones = np.ones(edges.shape[1], np.int8)
    number, member = connected_components(coo_array((ones, tuple(edges)), (size, size)), directed=False)
    if number == 1:
        return graph
    keep = member == np.argmax(np.bincount(member))
    rules.cleaned["components"] += int((~keep).sum())
    place, inside = np.cumsum(keep) - 1, keep[edges[0]]
    return replace(
        graph,
        sizes=torch.tensor([int(keep.sum())]),
        edges=torch.from_numpy(place[edges[:, inside]]),
        edge_counts=torch.tensor([int(inside.sum())]),
        node_types=None if graph.node_types is None else graph.node_types[torch.from_numpy(keep)],
        edge_types=None if graph.edge_types is None else graph.edge_types[torch.from_numpy(inside)],
        node_values=None if graph.node_values is None else graph.node_values[keep],
        edge_values=None if graph.edge_values is None else graph.edge_values[inside],
    )


def finish(raw: RawGraphs, rules: Rules, source: str) -> RawGraphs:
    """What is left to do once all graphs of a source are read: keep the largest components, and say what was mended.

    Raises:
        DataError: an attribute that ``data.attributes`` names does not exist.
    """
    if "components" in rules.clean:
        raw.graphs = [largest_component(graph, rules) for graph in raw.graphs]
    first = raw.graphs[0]
    known = [each.name for each in (*first.node_attributes, *first.edge_attributes)]
    known += ["type"] if raw.node_types else []
    for name in rules.attributes or ():
        if name not in known:
            raise DataError(f"data.attributes: {unknown('attribute', name, [*dict.fromkeys(known), 'all', 'none'])}")
    rules.report(source)
    return raw
