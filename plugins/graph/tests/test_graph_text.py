"""Graphs in text files: what the usual collections write is recognised, or refused in one line that names the place."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest
from graph_samples import random_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from nextscale.errors import DataError, NextscaleWarning
from nextscale_graph.config import GraphDataConfig, GraphLimitsConfig
from nextscale_graph.data import open_graphs
from nextscale_graph.readers.folder import read_folder, read_graph

PATH = [[0, 1], [1, 2]]
"""Edges of a path of three nodes, in the order of the file."""


def edges_of(folder: Path, name: str, content: str | bytes) -> tuple[int, list[list[int]]]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    graph = read_graph(path)
    return int(graph.sizes[0]), graph.edges.T.tolist()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.txt", b"\xef\xbb\xbfx y\ny z\n"),
        ("utf16.tsv", "x\ty\r\ny\tz\r\n".encode("utf-16")),
        ("old-mac.edges", "7 8\r8 9\r"),
        ("comments.txt", "# one\n% two\n// three\n; four\n7 8 # five\n8 9\n"),
        ("header.csv", "from,to,since\nann,bob,1999\nbob,cid,2001\n"),
        ("header.tsv", "node_1\tnode_2\n4\t5\n5\t6\n"),
        ("unknown-header.csv", "Station A,Station B\n4,5\n5,6\n"),
        ("columns.csv", ",weight,Target,Source\n0,3,b,a\n1,4,c,b\n"),
        ("floats.csv", "4.0,5\n5.0,6.0\n"),
        ("exponents.csv", "1e+05,7\n7.0,1.5e+03\n"),
        ("semicolons.csv", "4;5;0,25\n5;6;0,5\n"),
        ("blanks.csv", "San Jose,Santa Fe\nSanta Fe, El Paso\n"),
        ("quotes.txt", '"San Jose"   "Santa Fe" 3\n"Santa Fe" Reno 4\n'),
        ("quoted-separators.csv", '"Doe, J",Roe\nRoe,"#1; the best"\n'),
        ("attributes.edgelist", "4 5 {'weight': 2, 'kind': 'x'}\n5 6 {}\n"),
        ("snap.txt", "# Undirected graph: toy\n# Nodes: 3 Edges: 2\n# FromNodeId\tToNodeId\n7\t8\n8\t9\n"),
        ("out.toy", "% sym positive\n% 2 3 3\n1 2 5 1000\n2 3 4 1001\n"),
        ("matrix.mtx", "%%MatrixMarket matrix coordinate real symmetric\n% c\n3 3 2\n2 1 0.5\n3 2 2\n"),
        ("general.mtx", "%%MatrixMarket matrix coordinate pattern general\n3 3 4\n1 2\n2 1\n2 3\n3 2\n"),
        ("dimacs.col", "c a path\np edge 3 2\nn 1 4\ne 1 2\ne 3 2\n"),
        ("pajek.net", '*Network toy\n*Vertices 3\n1 "a b" 0.1 0.2\n2 "c"\n3 "d"\n*Edges\n1 2 1.0\n2 3\n'),
        ("neighbours.net", "*Vertices 3\n*Edgeslist\n2 1 3\n"),
        ("list.adjlist", "# networkx\nx y\ny z\nz\n"),
        ("both-ends.adjlist", "x y\ny x z\nz y\n"),
        ("colons.txt", "x: y\ny: z\nz:\n"),
        ("gephi.csv", "Source;Target;Type;Id\n4;5;Undirected;0\n5;6;Undirected;1\n"),
    ],
)  # fmt: skip
def test_formats_of_the_usual_collections(tmp_path: Path, name: str, content: str | bytes) -> None:
    size, edges = edges_of(tmp_path, name, content)
    assert size == 3 and sorted(map(sorted, edges)) == PATH


def test_isolated_nodes_and_bipartite_graphs(tmp_path: Path) -> None:
    assert edges_of(tmp_path, "a.adjlist", "a b\nc\nd\n") == (4, [[0, 1]])
    assert edges_of(tmp_path, "a.col", "p edge 5 1\ne 2 4\n") == (5, [[1, 3]])
    assert edges_of(tmp_path, "a.net", "*Vertices 4\n*Edges\n1 4\n") == (4, [[0, 3]])
    assert edges_of(tmp_path, "a.mtx", "%%MatrixMarket matrix coordinate pattern symmetric\n4 4 1\n3 1\n") == (
        4,
        [[0, 2]],
    )
    # The two sides of a bipartite graph of KONECT are numbered separately: 1 and 1 are two nodes.
    assert edges_of(tmp_path, "out.b", "% bip unweighted\n1 1\n2 1\n") == (3, [[0, 1], [1, 2]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,p,q\n0,5,6\n1,6,7\n", "line 1: which columns of 'id,p,q'"),
        ("a.txt", "San Jose,Reno\nLas Vegas\n", "line 2, is separated by blanks, but line 1 by ','"),
        ("a.txt", "# Directed graph: web\n1 2\n", "line 1: the graph is directed"),
        ("out.a", "% asym unweighted\n1 2\n", "line 1: the graph is directed"),
        ("a.txt", "# Nodes: 3 Edges: 3\n1 2\n2 3\n", "line 1, announces 3 nodes and 3 edges, but the file has 3 and 2"),
        ("a.csv", "Source,Target,Type\n1,2,Undirected\n2,3,Directed\n", "line 3: the edge is directed"),
        ("a.txt", "1 2 3\n2 3\n3 1\n", "line 1, has 3 nodes: is this an adjacency list"),
        ("a.txt", "0 1 0\n1 0 1\n0 1 0\n", "line 1: this is an adjacency matrix"),
        ("a.txt", "4 3\n0 1\n1 2\n2 3\n", "line 1: '4 3' are the numbers of nodes and edges"),
        ("a.txt", "x binds y\ny binds z\n", "line 1: 'binds' seems to be a relation"),
        ("a.txt", "x -- y\n", "line 1: '--' in 'x -- y' is no node"),
        ("a.txt", "(1, 2) (1, 3) {}\n", "line 1: '(1' in '(1, 2) (1, 3)' has a bracket too many"),
        ("a.txt", "x y#1\n", "line 1: is '#' in 'x y#1' a part of a name"),
        ("a.txt", "x y\n0.25 y\n", "line 2: '0.25' in '0.25 y' is a fraction"),
        ("a.csv", "x,y\n,z\n", "line 2: '' in ',z' is missing"),
        ("a.csv", "x,y\nx,NaN\n", "line 2: 'NaN' in 'x,NaN' is missing"),
        ("a.txt", "007 8\n7 9\n", "nodes '007' and '7'"),
        ("a.txt", 'x "y z\n', "line 1: quotes in"),
        ("a.txt", "x 'y z'\n", "line 1: \"'y\" in \"x 'y z'\" begins with a quote"),
        ("a.txt", "x y\nz\n", "line 2: 'z' should be two nodes"),
        ("a.txt", "x y\nz z\n", "line 2, has a self-loop at node z"),
        ("a.txt", "x y\n# c\ny x\n", "line 3, has the edge y-x twice, first in line 1"),
        ("a.adjlist", "x y z\ny x\nz\n", "line 1, lists z at x, but not x at z"),
        ("a.txt", "x y\n\x00\x00\n", "line 2, holds a zero byte"),
        ("a.txt", "dl n = 3\ndata:\n1 2\n", "line 1: this is UCINET's DL"),
        ("a.txt", "digraph g {\n}\n", "line 1: this is DOT"),
        ("a.txt", '{"edges": [[0, 1]]}\n', "line 1: this is JSON"),
        ("a.col", "p sp 2 1\na 1 2 7\n", "line 2: 'a 1 2 7' should be 'e A B'"),
        ("a.col", "p edge 3 2\ne 1 2\n", "line 1, announces 2 edges, but the file has 1"),
        ("a.col", "p edge 3 1\ne 1 4\n", "line 2, has an edge 1-4; its 3 nodes"),
        ("a.net", "*Vertices 2\n*Arcs\n1 2\n", "line 3: only *Vertices and *Edges"),
        ("a.mtx", "%%MatrixMarket matrix coordinate pattern general\n2 2 1\n2 1\n", "the matrix is not symmetric"),
        ("a.mtx", "%%MatrixMarket matrix array real general\n2 2\n0\n1\n1\n0\n", "a graph is a square matrix in coord"),
        ("a.gml", "graph [ directed 1 node [ id 1 ] node [ id 2 ] edge [ source 1 target 2 ] ]", "is directed"),
    ],
)  # fmt: skip
def test_what_would_be_misread_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        edges_of(tmp_path, name, content)
    text = str(caught.value)
    assert str(tmp_path / name) in text and message in text and "\n" not in text


def test_latin_1_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2, is not UTF-8"):
        edges_of(tmp_path, "a.csv", "Bonn,Berlin\nKöln,Bonn\n".encode("latin-1"))


WRITERS = {
    ".edgelist": lambda graph, path: nx.write_edgelist(graph, path),
    ".csv": lambda graph, path: nx.write_edgelist(graph, path, delimiter=",", data=False),
    ".adjlist": lambda graph, path: nx.write_adjlist(graph, path),
    ".graphml": lambda graph, path: nx.write_graphml(graph, path),
    ".gml": lambda graph, path: nx.write_gml(graph, path, stringizer=str),
    ".net": lambda graph, path: nx.write_pajek(nx.relabel_nodes(graph, {i: f"n{i}" for i in graph}), path),
}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), suffix=st.sampled_from(sorted(WRITERS)))
def test_what_networkx_writes_is_read(tmp_path_factory: pytest.TempPathFactory, seed: int, suffix: str) -> None:
    """Edge lists leave isolated nodes out, as networkx writes them."""
    graph = random_graph(default_rng(seed), 12)
    if suffix in (".edgelist", ".csv"):
        graph.remove_nodes_from(list(nx.isolates(graph)))
    if not len(graph):
        return
    path = tmp_path_factory.mktemp("written") / f"graph{suffix}"
    WRITERS[suffix](graph, path)
    read = read_graph(path)
    assert int(read.sizes[0]) == len(graph) and int(read.edge_counts[0]) == graph.number_of_edges()
    assert nx.is_isomorphic(read.to_networkx()[0], graph)


def fill(folder: Path, count: int = 6) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"{i}.edges").write_text(f"0 1\n1 {i + 2}\n")


def test_names_above_the_data_decide_nothing(tmp_path: Path) -> None:
    for above in ("plain", "train/set", "validation/a/b", "test"):
        fill(tmp_path / above / "graphs", 10)
        data = open_graphs(GraphDataConfig(source=str(tmp_path / above / "graphs")))
        assert data.test is not None and (len(data.train), len(data.validation), len(data.test)) == (7, 1, 2)


def test_folders_inside_the_data_are_splits_or_mean_nothing(tmp_path: Path) -> None:
    for part in ("train/x", "train/y", "train/z/deep", "train/1", "train/10", "dev/x", "test/y", "test/z"):
        fill(tmp_path / "split" / part)
    splits = read_folder(tmp_path / "split").splits or []
    assert [splits.count(name) for name in ("train", "val", "test")] == [30, 6, 12]
    for part in ("a", "b"):
        fill(tmp_path / "classes" / part)
    assert read_folder(tmp_path / "classes").splits is None
    for part in ("a/train", "a/val", "b/train"):
        fill(tmp_path / "deep" / part)
    with pytest.raises(DataError, match="has the folders train, val further down"):
        read_folder(tmp_path / "deep")


def test_files_beside_graphs(tmp_path: Path) -> None:
    """Prose is passed over; what may be a graph or a label is passed over with a warning; twins are refused."""
    fill(tmp_path / "g")
    for name in ("README.txt", "LICENSE.txt", "readme_first.csv", "notes.md"):
        (tmp_path / "g" / name).write_text("Some words about\nthese graphs\n")
    assert len(read_folder(tmp_path / "g").graphs) == 6
    (tmp_path / "g" / "labels.csv").write_text("0,1\n1,0\n")
    with pytest.warns(NextscaleWarning, match=r"labels\.csv beside the graphs: not read"):
        assert len(read_folder(tmp_path / "g").graphs) == 6
    (tmp_path / "g" / "labels.csv").unlink()
    nx.write_gml(nx.path_graph(3), tmp_path / "g" / "2.gml")
    with pytest.raises(DataError, match="the same graph in two formats"):
        read_folder(tmp_path / "g")


def test_limits_hold_before_memory_is_taken(tmp_path: Path) -> None:
    limits = GraphLimitsConfig(nodes=4, edges=3, text_bytes=200)
    for name, content, what in (
        ("a.txt", "1 2\n3 4\n5 6\n", r"line 3, has 5 nodes or more, beyond data\.limits\.nodes=4"),
        ("b.txt", "1 2\n2 3\n3 4\n4 1\n", r"line 4, has 4 edges or more, beyond data\.limits\.edges=3"),
        ("c.col", "p edge 1000000000 0\n", r"limits\.nodes"),
        ("d.net", "*Vertices 1000000000\n", r"limits\.nodes"),
        ("e.mtx", "%%MatrixMarket matrix coordinate pattern symmetric\n9 9 1\n2 1\n", r"limits\.nodes"),
        ("f.graphml", "<graphml><graph>" + "<node id='1'/>" * 5, r"limits\.nodes"),
        ("g.gml", "graph [" + "node [ id 1 ]" * 5, r"limits\.nodes"),
        ("h.txt", "1 2 " + "x" * 300, r"limits\.text_bytes"),
        ("i.graphml", "<graphml>" + " " * 300, r"limits\.text_bytes"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=what):
            read_graph(tmp_path / name, limits)
