"""``data.clean``: each step mends what it names, in every format; without it, the refusal names the step."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from nextscale.errors import DataError, NextscaleWarning
from nextscale_graph.readers import read_source
from nextscale_graph.readers.memory import from_memory
from nextscale_graph.readers.rules import Rules

GML = 'graph [ directed {} multigraph {} node [ id 1 label "ann" ] node [ id 2 label "bob" ] {} ]'
EDGE = "edge [ source {} target {} ] "
ONE_NODE = [("ann", 1), ("bob", 2)]


def write(folder: Path, name: str, content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    return folder


def graphml(edges: str, kind: str = "undirected") -> str:
    nodes = "".join(f"<node id='{name}'/>" for name in ("ann", "bob"))
    lines = "".join(f"<edge source='{edge.split('-')[0]}' target='{edge.split('-')[1]}'/>" for edge in edges.split())
    return f"<graphml><graph edgedefault='{kind}'>{nodes}{lines}</graph></graphml>"


CASES = {
    ("loops", "a.txt"): ("ann bob\nann ann\n", "self-loop at node ann"),
    ("loops", "a.graphml"): (graphml("ann-bob ann-ann"), "self-loop at node ann"),
    ("loops", "a.gml"): (GML.format(0, 0, EDGE.format(1, 2) + EDGE.format(1, 1)), "self-loop at node ann"),
    ("duplicates", "a.txt"): ("ann bob\nann bob\n", "edge ann-bob twice"),
    ("duplicates", "a.graphml"): (graphml("ann-bob ann-bob"), "edge ann-bob twice"),
    ("duplicates", "a.gml"): (GML.format(0, 1, EDGE.format(1, 2) * 2), "edge ann-bob twice"),
    ("direction", "a.txt"): ("ann bob\nbob ann\n", "edge bob-ann twice"),
    ("direction", "b.txt"): ("# Directed graph: web\nann bob\nbob ann\n", "the graph is directed"),
    ("direction", "a.csv"): (
        "Source,Target,Type\nann,bob,Directed\nbob,ann,Directed\n",
        "line 2: the edge is directed",
    ),
    ("direction", "a.graphml"): (graphml("ann-bob bob-ann", "directed"), "is directed"),
    ("direction", "a.gml"): (GML.format(1, 0, EDGE.format(1, 2) + EDGE.format(2, 1)), "is directed"),
    ("direction", "a.mtx"): ("%%MatrixMarket matrix coordinate pattern general\n2 2 1\n2 1\n", "not symmetric"),
    ("direction", "a.net"): ("*Vertices 2\n*Arcs\n1 2\n2 1\n", "only *Vertices and *Edges"),
    ("direction", "a.col"): ("p sp 2 2\na 1 2 7\na 2 1 7\n", "should be 'e A B'"),
}


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_each_step_in_each_format(tmp_path: Path, case: tuple[str, str]) -> None:
    step, name = case
    content, message = CASES[case]
    folder = write(tmp_path / "data", name, content)
    with pytest.raises(DataError) as caught:
        read_source(str(folder), "")
    assert message in str(caught.value) and f"data.clean={step}" in str(caught.value)
    assert "\n" not in str(caught.value)
    rules = Rules(clean=frozenset({step}))
    graph = read_source(str(folder), "", rules=rules).graphs[0]
    assert (int(graph.sizes[0]), graph.edges.tolist()) == (2, [[0], [1]])


def test_arrays(tmp_path: Path) -> None:
    edges = [[0, 1], [1, 1], [0, 1], [1, 0], [2, 3]]
    np.savez(
        tmp_path / "a.npz", num_nodes=[5], edges=edges, edge_offsets=[0, 5], **{"edge:weight": [1.5, 2, 3, 4, 5]}
    )  # fmt: skip
    for step, message in (("loops", "self-loop at node 1"), ("duplicates", "edge 0-1 twice")):
        others = frozenset({"loops", "duplicates"} - {step})
        with pytest.raises(DataError, match=rf"{message}.*data\.clean={step}"):
            read_source(str(tmp_path / "a.npz"), "", rules=Rules(clean=others))
    every = Rules(clean=frozenset({"loops", "duplicates", "direction", "components"}))
    with pytest.warns(NextscaleWarning, match=r"1 self-loop dropped; 1 repeated edge dropped.*3 nodes outside"):
        graph = read_source(str(tmp_path / "a.npz"), "", rules=every).graphs[0]
    assert graph.to_networkx()[0].edges(data=True).__iter__().__next__() == (0, 1, {"weight": 1.5})
    assert int(graph.sizes[0]) == 2


def test_the_largest_component_keeps_its_attributes() -> None:
    graph = nx.disjoint_union(nx.path_graph(2), nx.cycle_graph(4))
    nx.set_node_attributes(graph, {node: float(node) for node in graph}, "place")
    nx.set_edge_attributes(graph, {edge: edge[0] * edge[1] for edge in graph.edges}, "product")
    raw = from_memory([graph], rules=Rules(clean=frozenset({"components"})))
    expected = nx.convert_node_labels_to_integers(graph.subgraph(range(2, 6)))
    assert nx.utils.graphs_equal(raw.graphs[0].to_networkx()[0], expected)


def test_graphs_in_memory() -> None:
    ends = torch.tensor([[0, 1, 2], [1, 0, 2]])
    for directed, message in ((nx.DiGraph([("a", "b"), ("b", "a")]), "graph 0 is directed"),
                              (Data(edge_index=ends[:, :1], num_nodes=2), "graph 0 is directed")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            from_memory([directed])
        with pytest.warns(NextscaleWarning, match="1 directed graph read as undirected"):
            raw = from_memory([directed], rules=Rules(clean=frozenset({"direction"})))
        assert raw.graphs[0].edges.tolist() == [[0], [1]]
    with pytest.raises(DataError, match="self-loop at node 2"):
        from_memory([Data(edge_index=ends, num_nodes=3)])
