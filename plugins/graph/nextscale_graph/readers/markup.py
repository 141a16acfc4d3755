"""GraphML and GML, read by networkx."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx

from nextscale.plugin import DataError, check_file, read_text, reading, shown_path
from nextscale_graph.readers.raw import Builder, FileGraph, check_size, columns_of, refuse_directed, types_of
from nextscale_graph.readers.rules import Rules


def read_graphml(path: Path, rules: Rules) -> FileGraph:
    """One undirected graph, with its attributes and those of its nodes and edges.

    External entities are not fetched, and expat stops where entities grow out of proportion.

    Raises:
        DataError: the file is damaged, too large, holds several graphs, or its graph is directed or not simple.
    """
    what, limits = "GraphML file", rules.limits
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
        refuse_directed(shown_path(path), rules, "edgedefault=undirected; ")
    defaults = [graph.graph.pop(f"{of}_default", {}) for of in ("node", "edge")]
    for _, data in graph.nodes(data=True):
        data.update({name: value for name, value in defaults[0].items() if name not in data})
    for *_, data in graph.edges(data=True):
        data.pop("id", None)  # the name of the edge, not an attribute
        data.update({name: value for name, value in defaults[1].items() if name not in data})
    return convert(graph, path, rules)


def read_gml(path: Path, rules: Rules) -> FileGraph:
    """As ``read_graphml``, for GML."""
    text, limits = read_text(path, rules.limits), rules.limits
    number, ends = (len(re.findall(rf"\b{word}\s*\[", text)) for word in ("node", "edge"))
    check_size(shown_path(path), number, ends, limits)
    with reading(path, "GML file"):
        if "duplicates" in rules.clean and not re.search(r"\bmultigraph\s+1\b", text):
            text = re.sub(r"\bgraph\s*\[", "graph [ multigraph 1", text, count=1)
        graph = nx.parse_gml(text, label="id")
    if graph.is_directed():
        refuse_directed(shown_path(path), rules, "directed 0; ")
    labels = {node: str(label) for node, label in graph.nodes(data="label") if label is not None}
    if len(set(labels.values())) == len(graph):  # then it is the node's name
        for _, data in graph.nodes(data=True):
            del data["label"]
        graph = nx.relabel_nodes(graph, labels)
    return convert(graph, path, rules)


def convert(graph: nx.Graph, path: Path, rules: Rules) -> FileGraph:
    """A graph of networkx, with all its attributes. ``path`` is what messages call it.

    Raises:
        DataError: it is not simple, or some nodes or edges have a type and others have none.
    """
    builder = Builder(path, rules)
    for node in graph.nodes:
        builder.node(str(node))
    if len(builder.ids) < len(graph):
        raise DataError(f"{shown_path(path)} has two nodes of the same name, such as 1 and '1'")
    for one, other, data in graph.edges(data=True):
        builder.edge(str(one), str(other), None, {str(name): value for name, value in data.items()})
    found = builder.graph()
    columns = columns_of([{str(name): value for name, value in data.items()} for _, data in graph.nodes(data=True)])
    types = columns.pop("type", None)
    if rules.wants("type"):
        found.node_types = types_of(types, "node", found)
    found.node_columns = columns
    found.properties = {str(name): value for name, value in graph.graph.items()}
    return found
