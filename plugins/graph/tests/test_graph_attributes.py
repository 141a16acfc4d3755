"""Attributes and properties: what is read, written and drawn, and the tokens that stand for values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from nextscale.data import Samples
from nextscale.errors import ConfigError, DataError, NextscaleWarning
from nextscale_graph.archives import write_archives
from nextscale_graph.attributes import Attribute, learn_code, read_code
from nextscale_graph.config import GraphDataConfig, GraphTokenizerConfig
from nextscale_graph.data import open_graphs
from nextscale_graph.graphs import concatenate
from nextscale_graph.readers.arrays import read_npz
from nextscale_graph.readers.folder import read_folder, read_graph
from nextscale_graph.readers.memory import from_memory, write_npz
from nextscale_graph.readers.raw import RawGraphs
from nextscale_graph.readers.rules import Rules
from nextscale_graph.tokenizer import GraphTokenizer
from nextscale_graph.writers import write_samples

VALUES = {
    "bool": st.booleans(),
    "integer": st.integers(-(2**53), 2**53),
    "real": st.floats(allow_nan=False, allow_infinity=False),
    "text": st.sampled_from(["red", "blue", "a b", "Ω", "1"]),
}
NAMES = ["weight", "colour", "type", "size of it", "x.y", "k=v", "label"]


@st.composite
def graphs(draw: Any) -> list[nx.Graph]:
    """A few graphs whose nodes, edges and selves have the same attributes."""
    kinds = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(sorted(VALUES)), max_size=3)
    nodes, edges, own = draw(kinds), draw(kinds), draw(kinds)
    found = []
    for _ in range(draw(st.integers(2, 4))):
        graph = nx.gnp_random_graph(draw(st.integers(2, 6)), 0.7, seed=draw(st.integers(0, 99)))
        graph.add_edge(0, 1)
        for _, data in graph.nodes(data=True):
            data |= {name: draw(VALUES[kind]) for name, kind in nodes.items()}
        for *_, data in graph.edges(data=True):
            data |= {name: draw(VALUES[kind]) for name, kind in edges.items()}
        graph.graph |= {name: draw(VALUES[kind]) for name, kind in own.items()}
        found.append(graph)
    return found


def named(raw: RawGraphs) -> list[nx.Graph]:
    """The graphs of networkx, with types as texts. Types that were made up for the other side are left out."""
    found = []
    for graph in (one.to_networkx()[0] for one in raw.graphs):
        for names, made_up, items in (
            (raw.node_types, ["node"], graph.nodes(data=True)),
            (raw.edge_types, ["edge"], graph.edges(data=True)),
        ):
            for *_, data in items:
                if "type" in data:
                    data["type"] = names[data["type"]]
                if names == made_up:
                    del data["type"]
        found.append(graph)
    return found


def as_read(graph: nx.Graph) -> nx.Graph:
    """Types are always texts."""
    graph = graph.copy()
    for items in (graph.nodes(data=True), graph.edges(data=True)):
        for *_, data in items:
            if "type" in data:
                data["type"] = str(data["type"])
    return graph


def same(read: RawGraphs, graphs: list[nx.Graph]) -> None:
    for one, graph in zip(named(read), graphs, strict=True):
        other = as_read(graph)
        assert nx.utils.graphs_equal(one, other)
        assert one.graph == other.graph
        kinds = [
            [{name: type(value) for name, value in data.items()} for _, data in each.nodes(data=True)]
            for each in (one, other)
        ]
        assert kinds[0] == kinds[1]


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, graphs: list[nx.Graph]) -> None:
    """Names, numbers, texts and properties, in arrays and in GraphML. Names are asked for, because texts may look like
    the names of nodes."""
    folder = tmp_path_factory.mktemp("written")
    same(
        read_npz(write_npz(graphs, folder / "g.npz", rules=read_all_names(graphs)), rules=read_all_names(graphs)),
        graphs,
    )
    batch = concatenate(from_memory(graphs, rules=read_all_names(graphs)).graphs)
    write_samples(batch, folder / "out")
    parts = [batch[i : i + 2] for i in range(0, len(batch), 2)]
    write_archives([Samples(part, [], {}) for part in parts], folder / "out", {})
    same(read_folder(folder / "out", rules=read_all_names(graphs)), graphs)
    same(read_npz(folder / "out" / "graphs.npz", rules=read_all_names(graphs)), graphs)


def read_all_names(graphs: list[nx.Graph]) -> Rules:
    rows = [data for graph in graphs for *_, data in (*graph.nodes(data=True), *graph.edges(data=True))]
    return Rules(attributes=tuple({name for row in rows for name in row}))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1e9, 1e9) | st.integers(-3, 3).map(float), min_size=1, max_size=80),
    st.integers(2, 20),
    st.lists(st.floats(-1e12, 1e12), max_size=5),
)
def test_bins_are_written_as_numbers_that_lie_in_them(values: list[float], bins: int, others: list[float]) -> None:
    attribute, stored = Attribute("weight", "real"), np.array(values)
    code = learn_code(attribute, stored, bins)
    assert 1 <= len(code) <= bins and read_code(code.describe()) == code
    tokens = code.encode(np.array(values + others), attribute)
    assert set(tokens.tolist()) <= set(range(len(code)))
    decoded = code.decode(tokens)
    assert set(decoded.tolist()) <= set(values)
    assert np.array_equal(code.encode(decoded, attribute), tokens)
    order = np.argsort(np.r_[stored, others], kind="stable")
    assert (np.diff(tokens[order]) >= 0).all()
    if len(set(values)) <= bins:
        assert np.array_equal(code.decode(code.encode(stored, attribute)), stored)


def toy(count: int = 24) -> list[nx.Graph]:
    """Paths and cycles with two colours, weights and a property."""
    found = []
    for i in range(count):
        graph = nx.path_graph(3 + i % 4) if i % 2 else nx.cycle_graph(3 + i % 4)
        for node, data in graph.nodes(data=True):
            data |= {"colour": ["red", "blue"][(node + i) % 2], "charge": (node * i) % 3 - 1}
        for a, b, data in graph.edges(data=True):
            data |= {"weight": (a + 2 * b + i) / 7, "strong": (a + b) % 2 == 0}
        graph.graph |= {"shape": ["cycle", "path"][i % 2], "degree": 2 * graph.number_of_edges() / len(graph)}
        found.append(graph)
    return found


def test_attributes_are_drawn_after_the_graph_one_scale_each(tmp_path: Path) -> None:
    path = write_npz(toy(), tmp_path / "toy.npz")
    data = open_graphs(GraphDataConfig(source=str(path), property="shape,degree", bins=4))
    tokenizer = GraphTokenizer(GraphTokenizerConfig(max_nodes=6, ratio=0.3), data.description)
    assert list(tokenizer.scales.attributes) == ["node colour", "node charge", "edge weight", "edge strong"]
    batch = data.train.batch(np.arange(8), None)
    assert batch.conditions["shape"].dtype == torch.int64 and batch.conditions["degree"].shape == (8, 1)
    pyramid, orders = tokenizer.encode_ordered(batch.samples)
    states = tokenizer.states(pyramid, batch.conditions)
    drawn = tokenizer.decode(states[-1])
    for i, order in enumerate(orders):
        before, after = batch.samples[[i]].to_networkx()[0], drawn[[i]].to_networkx()[0]
        after = nx.relabel_nodes(after, dict(enumerate(order.tolist())))
        for node, row in before.nodes(data=True):
            assert after.nodes[node] == row  # two categories and three numbers in four bins: exact
        edges = {edge: after.edges[edge]["strong"] for edge in before.edges}
        assert edges == nx.get_edge_attributes(before, "strong")
        assert after.graph["shape"] == before.graph["shape"]
        assert after.graph["degree"] == pytest.approx(before.graph["degree"])
    # Later attributes see earlier ones, and none sees itself.
    names = tokenizer.scale_names(len(pyramid.schedule))
    last = {name: k for k, name in enumerate(names)}
    inputs = tokenizer.scale_input(states[last["edge weight"]], last["edge weight"]).structure[0]
    assert bool((inputs.node_types > 0).all()) and not bool(inputs.edge_types.any())
    inputs = tokenizer.scale_input(states[last["edge strong"]], last["edge strong"]).structure[0]
    assert (inputs.edge_types > 0).all(0).tolist() == [True, False]


def test_graphs_without_what_the_model_draws_are_refused(tmp_path: Path) -> None:
    data = open_graphs(GraphDataConfig(source=str(write_npz(toy(), tmp_path / "toy.npz"))))
    tokenizer = GraphTokenizer(GraphTokenizerConfig(max_nodes=6, ratio=0.3), data.description)
    plain = concatenate(from_memory([nx.path_graph(3)]).graphs)
    with pytest.raises(DataError, match="no node attribute 'colour'"):
        tokenizer.encode(plain)
    odd = toy(2)
    odd[0].nodes[0]["colour"] = "green"
    with pytest.raises(DataError, match="'colour' has the value 'green', which no training graph has"):
        tokenizer.encode(
            concatenate(from_memory(odd, rules=Rules(attributes=("colour", "charge", "weight", "strong"))).graphs)
        )


def test_columns_of_edge_lists(tmp_path: Path) -> None:
    def edges(name: str, text: str) -> list[dict[str, Any]]:
        (tmp_path / name).write_text(text)
        return [data for *_, data in read_graph(tmp_path / name).to_networkx()[0].edges(data=True)]

    assert edges("a.txt", "x y 0.5\ny z 2\n") == [{"weight": 0.5}, {"weight": 2.0}]
    assert edges("b.csv", "from,to,since,kind\na,b,1999,x\nb,c,2001,y\nc,d,2001,x\n") == [
        {"since": 1999, "kind": "x"}, {"since": 2001, "kind": "y"}, {"since": 2001, "kind": "x"},
    ]  # fmt: skip
    assert edges("c.edgelist", "1 2 {'weight': 3}\n2 3 {'weight': 4}\n") == [{"weight": 3}, {"weight": 4}]
    header = "%%MatrixMarket matrix coordinate real symmetric\n3 3 2\n2 1 0.5\n3 2 2\n"
    assert edges("d.mtx", header) == [{"weight": 0.5}, {"weight": 2.0}]
    assert edges("gephi.csv", "Source;Target;Type;Id\n4;5;Undirected;0\n5;6;Undirected;1\n") == [{}, {}]


def test_values_that_are_missing(tmp_path: Path) -> None:
    """They are left out with a warning; if the attribute was asked for, the message says where."""
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text("a b 1.5\nb c\n" if i == 7 else "a b 1.5\nb c 2\n")
    with pytest.warns(NextscaleWarning, match=r"edge weight \(.*7\.txt: edge b-c has no weight\)"):
        data = open_graphs(GraphDataConfig(source=str(tmp_path)))
    assert data.description["edge_attributes"] == []
    with pytest.raises(DataError, match=r"7\.txt: edge b-c has no weight"):
        open_graphs(GraphDataConfig(source=str(tmp_path), attributes="weight"))
    with pytest.raises(DataError, match="unknown attribute 'wieght'"):
        open_graphs(GraphDataConfig(source=str(tmp_path), attributes="wieght"))


def test_features_of_torch_geometric() -> None:
    ends = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    graphs = [
        Data(
            x=torch.eye(4)[[0, 3, 1]], edge_index=ends, edge_attr=torch.tensor([[0.5, 1], [0.5, 1], [2, 3], [2, 3]]),
            y=torch.tensor([i % 2]), z=torch.tensor([6, 1, 8]), name=f"g{i}",
        )
        for i in range(3)
    ]  # fmt: skip
    raw = from_memory(graphs)
    one = raw.graphs[1].to_networkx()[0]
    assert [data for _, data in one.nodes(data=True)] == [{"x": 0, "z": 6}, {"x": 3, "z": 1}, {"x": 1, "z": 8}]
    assert one.edges[1, 2] == {"edge_attr_0": 2.0, "edge_attr_1": 3.0}
    assert one.graph == {"y": 1, "name": "g1"}
    with pytest.raises(DataError, match="not Data, Graph"):
        from_memory([nx.path_graph(2), graphs[0]])


def test_labels_of_graphs_in_memory(tmp_path: Path) -> None:
    path = write_npz(toy(12), tmp_path / "a.npz", labels=["a", "b"] * 6)
    data = open_graphs(GraphDataConfig(source=str(path), property="label"))
    assert data.conditions[1].names == ("a", "b") and data.conditions[1].kind == "class"
    with pytest.raises(DataError, match="label has 3 values for 12 graphs"):
        write_npz(toy(12), tmp_path / "b.npz", labels=[1, 2, 3])
    assert not (tmp_path / "b.npz").exists()


def test_properties_become_conditions(tmp_path: Path) -> None:
    path = write_npz(toy(), tmp_path / "toy.npz", labels={"size": list(range(24)), "digit": [i % 5 for i in range(24)]})
    data = open_graphs(GraphDataConfig(source=str(path), property="degree,shape,size,digit"))
    degree, shape, size, digit = data.conditions[1:]
    assert (degree.kind, degree.size) == ("vector", 1) and degree.scale[0] > 0
    values = torch.cat([data.train.batch(np.arange(len(data.train)), None).conditions["degree"]])
    assert float(((values - degree.offset[0]) / degree.scale[0]).std(unbiased=False)) == pytest.approx(1, abs=1e-4)
    assert shape.names == ("cycle", "path")
    assert (size.name, size.kind) == ("graph_size", "vector")  # size is the number of nodes
    assert digit.names == ("0", "1", "2", "3", "4")
    with pytest.raises(DataError, match="unknown property 'degre'; did you mean 'degree'"):
        open_graphs(GraphDataConfig(source=str(path), property="degre"))


def test_a_table_of_properties(tmp_path: Path) -> None:
    folder = tmp_path / "graphs"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text("a b\nb c\n")
    table = "file,energy,kind\n" + "".join(f"{i}.txt,{i / 3},{'xy'[i % 2]}\n" for i in range(12))
    for path in (tmp_path / "graphs.csv", folder / "properties.csv"):
        path.write_text(table)
        data = open_graphs(GraphDataConfig(source=str(folder), property="energy,kind"))
        assert [spec.kind for spec in data.conditions[1:]] == ["vector", "class"]
        path.unlink()
    (folder / "properties.csv").write_text(table.replace("3.txt,1.0", "3.txt,"))
    with pytest.raises(DataError, match=r"3\.txt has no energy"):
        open_graphs(GraphDataConfig(source=str(folder), property="energy"))
    for change, message in (
        (("3.txt,", "33.txt,"), "unknown file '33.txt'"),
        (("3.txt,1.0,y\n", ""), "has no line for 3.txt"),
        (("3.txt,1.0,y\n", "3.txt,1.0\n"), "the line of 3.txt has 2 columns"),
    ):
        (folder / "properties.csv").write_text(table.replace(*change))
        with pytest.raises(DataError, match=message):
            open_graphs(GraphDataConfig(source=str(folder), property="energy"))


def test_unknown_steps_of_cleaning() -> None:
    from nextscale.config.run import load_config

    with pytest.raises(ConfigError, match="unknown step 'loop'; did you mean 'loops'"):
        load_config("graph", "none", None, ["data.clean=loop"])
