"""GraphML and GML, read by networkx."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx as nx

from nextscale.plugin import DataError, check_file, read_text, reading, shown_path
from nextscale_graph.config import GraphLimitsConfig
from nextscale_graph.readers.raw import Builder, FileGraph, check_size


def read_graphml(path: Path, limits: GraphLimitsConfig) -> FileGraph:
    """One undirected graph. The attribute ``type`` of nodes and edges is read; others are ignored.

    External entities are not fetched, and expat stops where entities grow out of proportion.

    Raises:
        DataError: the file is damaged, too large, holds several graphs, or its graph is directed or not simple.
    """
    what = "GraphML file"
    with reading(path, what):
        size = check_file(path).stat().st_size
        if size > limits.text_bytes:
            raise DataError(
                f"{shown_path(path)} has {size:,} bytes, more than data.limits.text_bytes={limits.text_bytes:,}"
            )
        text = path.read_bytes()
        # Elements take many times the memory of their text.
        check_size(shown_path(path), text.count(b"<node"), text.count(b"<edge"), limits)
        elements = [element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()]
        if elements.count("graph") > 1:
            raise DataError(f"{shown_path(path)} holds {elements.count('graph')} graphs: write one graph per file")
        graph = nx.read_graphml(path)
    # networkx joins nodes with the same id, and adds nodes that only edges mention.
    if len(graph) != elements.count("node"):
        raise DataError(
            f"{shown_path(path)} declares {elements.count('node')} nodes, but has {len(graph)} different ones: an id "
            "occurs twice, or an edge ends at a node that is not declared"
        )
    if graph.is_directed():
        raise DataError(f"{shown_path(path)} is directed: only undirected graphs are modelled (edgedefault=undirected)")
    return _convert(graph, path, limits)


def read_gml(path: Path, limits: GraphLimitsConfig) -> FileGraph:
    """As ``read_graphml``, for GML."""
    text = read_text(path, limits)
    number, ends = (len(re.findall(rf"\b{word}\s*\[", text)) for word in ("node", "edge"))
    check_size(shown_path(path), number, ends, limits)
    with reading(path, "GML file"):
        graph = nx.parse_gml(text, label="id")
    if graph.is_directed():
        raise DataError(f"{shown_path(path)} is directed: only undirected graphs are modelled (directed 0)")
    return _convert(graph, path, limits)


def _convert(graph: nx.Graph, path: Path, limits: GraphLimitsConfig) -> FileGraph:
    builder = Builder(path, limits)
    for node in graph.nodes:
        builder.node(str(node))
    for one, other in graph.edges():
        builder.edge(str(one), str(other))
    found = builder.graph()
    found.node_types = _types(list(graph.nodes(data="type")), "node", path)
    found.edge_types = _types(list(graph.edges(data="type")), "edge", path)
    return found


def _types(rows: list[tuple[Any, ...]], of: str, path: Path) -> list[str] | None:
    """The types of all nodes or edges as texts; None if none has one."""
    types = [None if row[-1] is None else str(row[-1]) for row in rows]
    if all(one is None for one in types):
        return None if types else []
    if None in types:
        where = "-".join(map(str, rows[types.index(None)][:-1]))
        raise DataError(f"{shown_path(path)}: {of} {where} has no type, but others have: give all of them one, or none")
    return [str(one) for one in types]
