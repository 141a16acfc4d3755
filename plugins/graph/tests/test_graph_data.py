"""Reading graphs: every kind of source, and one-line errors for bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from graph_samples import random_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from nextscale.data import Samples
from nextscale.errors import DataError, NextscaleError
from nextscale.training.order import StreamOrder
from nextscale_graph.archives import write_archives
from nextscale_graph.config import GraphDataConfig, GraphTokenizerConfig
from nextscale_graph.data import open_graphs
from nextscale_graph.graphs import from_networkx, from_pyg
from nextscale_graph.readers.arrays import read_npz
from nextscale_graph.readers.folder import read_folder, read_graph
from nextscale_graph.source import GraphSource, describe
from nextscale_graph.tokenizer import GraphTokenizer
from nextscale_graph.writers import write_npz, write_samples


def save(path: Path, num_nodes: list[int], edges: list[list[tuple[int, int]]], **more: object) -> Path:
    flat = np.array([edge for each in edges for edge in each], np.int64).reshape(-1, 2)
    offsets = np.cumsum([0, *map(len, edges)])
    np.savez(path, num_nodes=np.array(num_nodes), edges=flat, edge_offsets=offsets, **more)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("typed", [False, True])
def test_what_is_written_is_read_back(tmp_path: Path, typed: bool) -> None:
    batch = random_batch(1, 9, 8, typed)
    files = write_samples(batch, tmp_path)
    write_archives([Samples(batch[:4], [], {}), Samples(batch[4:], [], {})], tmp_path, {})
    assert len(files) == 9
    for raw in (read_npz(tmp_path / "graphs.npz"), *([] if typed else [read_folder(tmp_path)])):
        for one, graph in zip(raw.graphs, batch.to_networkx(), strict=True):
            assert nx.utils.graphs_equal(one.to_networkx()[0], graph)


def test_torch_geometric_and_networkx_agree() -> None:
    from torch_geometric.utils import to_networkx

    batch = random_batch(2, 5, 9, typed=True)
    for data, graph in zip(batch.to_data_list(), batch.to_networkx(), strict=True):
        assert nx.utils.edges_equal(to_networkx(data, to_undirected=True).edges, nx.Graph(graph.edges).edges)
        assert data.x is not None and data.x[:, 0].tolist() == [kind for _, kind in graph.nodes(data="type")]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_torch_geometric_and_back(seed: int, typed: bool) -> None:
    batch = random_batch(seed % 1000, 1 + seed % 5, 9, typed)
    there = batch.to_pyg()
    assert there.num_graphs == len(batch) and there.num_nodes == int(batch.sizes.sum()) and there.is_undirected()
    for back in (from_pyg(there), from_pyg(batch.to_data_list())):
        for name in ("sizes", "edges", "edge_counts", "node_types", "edge_types"):
            one, other = getattr(batch, name), getattr(back, name)
            assert (one is None and other is None) or torch.equal(one, other), name


def test_a_directed_graph_of_torch_geometric_is_refused() -> None:
    directed = Data(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=3)
    with pytest.raises(DataError, match="graph 1 is directed"):
        from_pyg([random_batch(1, 1, 5).to_data_list()[0], directed])


def test_splits_of_a_file_are_kept_and_others_held_out(tmp_path: Path, small_file: Path) -> None:
    split = np.array(["train", "train", "val", "test"])
    path = save(tmp_path / "a.npz", [2] * 4, [[(0, 1)]] * 4, split=split)
    data = open_graphs(GraphDataConfig(source=str(path)))
    assert data.test is not None and (len(data.train), len(data.validation), len(data.test)) == (2, 1, 1)
    data = open_graphs(GraphDataConfig(source=str(small_file)))
    assert data.test is not None and (len(data.train), len(data.validation), len(data.test)) == (22, 2, 6)


def test_folders_of_edge_lists(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        (tmp_path / split).mkdir()
        for i in range(count):
            (tmp_path / split / f"{i}.edgelist").write_text("# a triangle\na b {}\nb c\nc,a\n")
    raw = read_folder(tmp_path)
    assert raw.splits is not None and sorted(raw.splits) == ["test", "train", "train", "train", "val"]
    assert raw.graphs[0].edges.tolist() == [[0, 0, 1], [1, 2, 2]]


@pytest.mark.parametrize(
    ("edges", "num_nodes", "message"),
    [
        ([(0, 1), (2, 2)], 3, "self-loop at node 2"),
        ([(0, 1), (1, 0)], 2, "edge 0-1 twice"),
        ([(0, 5)], 3, "numbered from 0"),
        ([], 0, "has no nodes"),
    ],
)
def test_graphs_that_are_not_simple_are_named(
    tmp_path: Path, edges: list[tuple[int, int]], num_nodes: int, message: str
) -> None:
    path = save(tmp_path / "bad.npz", [2, num_nodes], [[(0, 1)], edges])
    with pytest.raises(DataError, match=message) as caught:
        read_npz(path)
    assert f"{path}: graph 1" in str(caught.value)


def test_bad_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no graphs"):
        read_folder(tmp_path)
    with pytest.raises(DataError, match="did you mean 'planar'"):
        open_graphs(GraphDataConfig(source="planr"))
    with pytest.raises(DataError, match="does not exist"):
        open_graphs(GraphDataConfig(source=str(tmp_path / "none.npz")))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="holds no 'num_nodes'"):
        read_npz(tmp_path / "other.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK not really")
    with pytest.raises(DataError, match=r"cannot read \.npz file"):
        read_npz(tmp_path / "broken.npz")
    (tmp_path / "one.edgelist").write_text("0 1\n2\n")
    with pytest.raises(DataError, match="line 2: '2' should be two nodes"):
        read_graph(tmp_path / "one.edgelist")
    nx.write_graphml(nx.DiGraph([(0, 1)]), tmp_path / "directed.graphml")
    with pytest.raises(DataError, match="is directed"):
        read_graph(tmp_path / "directed.graphml")


def test_smiles(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    from nextscale_graph.readers.smiles import read_smiles, to_smiles

    lines = ["CCO", "c1ccccc1", "C[NH3+]", "N#CC=O", "C"]
    path = tmp_path / "few.smi"
    path.write_text("\n".join(lines))
    raw = read_smiles(path)
    assert raw.node_types == ["C", "N", "N+1", "O"] and raw.edge_types == ["SINGLE", "DOUBLE", "TRIPLE"]
    assert [to_smiles(graph, raw.node_types) for graph in raw.graphs] == ["CCO", "c1ccccc1", "C[NH3+]", "N#CC=O", "C"]
    path.write_text("CCO\nC(C\n")
    with pytest.raises(DataError, match=r"line 2: 'C\(C' does not parse"):
        read_smiles(path)


def test_sizes_out_of_range() -> None:
    batch = random_batch(0, 4, 6)
    description = describe([batch[[i]] for i in range(4)], [], []) | {"largest": 6}
    tokenizer = GraphTokenizer(GraphTokenizerConfig(max_nodes=8), description)
    import torch

    with pytest.raises(NextscaleError, match=r"size 9 is more than tokenizer.max_nodes 8"):
        tokenizer.initial_state(1, {"size": torch.tensor([9])})
    with pytest.warns(UserWarning, match="size 8 is beyond the data"):
        tokenizer.initial_state(1, {"size": torch.tensor([8])})
    with pytest.raises(NextscaleError, match=r"max_nodes 5 is less than the 6 nodes"):
        GraphTokenizer(GraphTokenizerConfig(max_nodes=5), description)


def test_written_arrays_carry_types(tmp_path: Path) -> None:
    raw = read_npz(write_npz(random_batch(5, 3, 6, typed=True), tmp_path / "typed.npz"))
    assert raw.node_types and raw.graphs[0].node_types is not None


def test_training_batches_of_ragged_graphs_waste_less_than_30_percent() -> None:
    """Graphs of 5 to 190 nodes, sparse and dense, in the batches that training forms."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 191, 240)
    graphs = [nx.random_labeled_tree(int(size), seed=i) for i, size in enumerate(sizes)]
    for graph in graphs:
        more = int(len(graph) * rng.choice([0.5, 1, 3]))
        graph.add_edges_from(rng.integers(0, len(graph), (more, 2)).tolist())
        graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    singles = [from_networkx([graph]) for graph in graphs]
    source = GraphSource(singles)
    tokenizer = GraphTokenizer(GraphTokenizerConfig(), describe(singles, [], []) | {"largest": 190})
    order, real, spent = StreamOrder(len(source), 0, lengths=source.lengths, batch_size=8), 0, 0
    for first in range(0, len(source), 8):
        batch = source.batch(order.rows(np.arange(first, first + 8)), np.arange(8).astype(np.uint64))
        pyramid = tokenizer.encode(batch.samples)
        real += int(pyramid.mask.sum()) if pyramid.mask is not None else pyramid.tokens.numel()
        spent += pyramid.tokens.numel()
    assert 1 - real / spent < 0.3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../up", "is no name of a data set"),
        ("/etc/passwd", "is no name of a data set"),
        ("Planetod/Cora", "did you mean 'Planetoid'"),
        ("Planetoid/", "needs the name of the data set: pyg:Planetoid/NAME"),
        ("ZINC/subset", "ZINC has no data sets with names; write pyg:ZINC/"),
        ("inspect/x", "has no class 'inspect'"),
    ],
)
def test_names_of_torch_geometric_data_sets(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_graphs(GraphDataConfig(source=f"pyg:{name}", root=str(tmp_path / "root")))
    assert message in str(caught.value) and not (tmp_path / "root").exists()


def test_a_torch_geometric_data_set_without_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The argument behind the folder is a transform, not a name."""
    import torch
    from torch_geometric import datasets
    from torch_geometric.data import Data, InMemoryDataset

    class Toy(InMemoryDataset):
        def __init__(self, root: str, transform: Any = None) -> None:
            super().__init__(root, transform)
            ends = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
            self.data, self.slices = self.collate([Data(edge_index=ends, num_nodes=3 + i) for i in range(12)])

    monkeypatch.setattr(datasets, "Toy", Toy, raising=False)
    data = open_graphs(GraphDataConfig(source="pyg:Toy/", root=str(tmp_path)))
    assert data.description["largest"] == 14 and len(data.train) == 9
