"""Graphs in arrays: whatever contradicts itself is refused, and what is written is read back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from graph_samples import random_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.data import Samples
from nextscale.errors import DataError
from nextscale_graph.archives import write_archives
from nextscale_graph.config import GraphDataConfig, GraphLimitsConfig
from nextscale_graph.data import open_graphs
from nextscale_graph.graphs import GraphBatch
from nextscale_graph.readers.arrays import read_npz
from nextscale_graph.readers.folder import read_folder
from nextscale_graph.source import GraphSource
from nextscale_graph.writers import write_npz, write_samples


def sound() -> dict[str, Any]:
    """Five paths of four nodes, with types."""
    return {
        "num_nodes": np.full(5, 4),
        "edges": np.tile([[0, 1], [1, 2], [2, 3]], (5, 1)),
        "edge_offsets": np.arange(6) * 3,
        "split": np.array(["train", "train", "train", "val", "test"]),
        "node_types": np.arange(20) % 3,
        "node_type_names": np.array(["x", "y", "z"]),
        "edge_types": np.arange(15) % 2,
    }


def read(folder: Path, limits: GraphLimitsConfig | None = None, **changes: Any) -> Any:
    arrays = {name: array for name, array in (sound() | changes).items() if array is not None}
    np.savez(folder / "g.npz", **arrays)
    return read_npz(folder / "g.npz", limits)


def test_sound_arrays(tmp_path: Path) -> None:
    raw = read(tmp_path, edges=sound()["edges"].astype(np.float32), num_nodes=np.full(5, 4, np.uint8))
    assert raw.node_types == ["x", "y", "z"] and raw.edge_types == ["0", "1"] and raw.splits[3:] == ["val", "test"]
    assert raw.graphs[1].node_types.tolist() == [1, 2, 0, 1] and raw.graphs[1].node_names == ("x", "y", "z")
    # Types of nodes alone, or of edges alone: the others all have one type.
    raw = read(tmp_path, edge_types=None)
    assert raw.edge_types == ["edge"] and raw.graphs[0].edge_types.tolist() == [0, 0, 0]
    raw = read(tmp_path, node_types=None, node_type_names=None, split=sound()["split"].astype("S5"))
    assert raw.node_types == ["node"] and raw.graphs[0].node_types.tolist() == [0] * 4 and raw.splits[0] == "train"


OFFSETS = sound()["edge_offsets"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge_offsets": np.r_[1, OFFSETS[1:]]}, "edge_offsets begins at 1 and ends at 15"),
        ({"edge_offsets": np.r_[-3, OFFSETS[1:]]}, "edge_offsets begins at -3"),
        ({"edge_offsets": np.r_[OFFSETS[:-1], 14]}, "ends at 14; it should begin at 0 and end at 15"),
        ({"edge_offsets": np.array([0, 3, 9, 6, 12, 15])}, "graph 2 has edge_offsets that fall"),
        ({"edge_offsets": OFFSETS + 0.5}, "edge_offsets should be integers, but holds 0.5"),
        ({"edge_offsets": OFFSETS[:-1]}, "do not fit"),
        ({"edges": sound()["edges"].T}, "do not fit"),
        ({"edges": sound()["edges"] + 0.25}, "edges should be integers, but holds 0.25"),
        ({"edges": np.full((15, 2), np.nan)}, "edges should be integers, but holds nan"),
        ({"edges": sound()["edges"].astype(str)}, "edges should be integers, not <U"),
        ({"edges": sound()["edges"].astype(complex)}, "edges should be integers, not complex128"),
        ({"edges": sound()["edges"] - 1}, "graph 0 has an edge at node -1"),
        ({"edges": np.full((15, 2), 2**64 - 1, np.uint64)}, "out of range"),
        ({"num_nodes": np.array([4, 4, 0, 4, 4])}, "graph 2 has no nodes"),
        ({"num_nodes": np.array([4, 4, 4, -4, 4])}, "graph 3 has no nodes"),
        ({"num_nodes": np.full(5, 4.5)}, "num_nodes should be integers, but holds 4.5"),
        ({"num_nodes": np.array([4, 10**9, 4, 4, 4])}, "graph 1 has more nodes than data.limits.nodes=100,000"),
        ({"num_nodes": np.full((5, 1), 4)}, "do not fit"),
        ({"num_nodes": np.full(5, True)}, "num_nodes should be integers, not bool"),
        ({"num_nodes": np.array(4)}, "do not fit"),
        ({"num_nodes": np.zeros(0, int), "edges": np.zeros((0, 2)), "edge_offsets": [0]}, "holds no graphs"),
        ({"node_types": np.arange(19)}, "node_types has shape (19,); it should have one number per node, 20"),
        ({"node_types": np.arange(21)}, "node_types has shape (21,)"),
        ({"node_types": np.full(20, -2)}, "node_types holds -2; types should be 0 to 2"),
        ({"node_types": np.full(20, 3)}, "node_types holds 3; types should be 0 to 2"),
        ({"node_types": np.full(20, 0.5)}, "node_types should be integers, but holds 0.5"),
        ({"edge_types": np.full(15, 10**9)}, "edge_types holds 1000000000"),
        ({"edge_types": np.zeros((15, 1), int)}, "edge_types has shape (15, 1)"),
        ({"node_type_names": np.array(["x", "y", "x"])}, "node_type_names should be one list of different names"),
        ({"node_types": None}, "holds node_type_names but no node_types"),
        ({"split": np.array(["train"] * 4)}, "split has shape (4,)"),
        ({"split": np.array(["train"] * 4 + ["tests"])}, "not 'tests'"),
        ({"split": None, "splits": np.array(["train"] * 5)}, "unknown array 'splits'; did you mean 'split'?"),
        ({"edges": None}, "holds no 'edges'"),
        ({"edges": np.array([[0, "x"]], dtype=object)}, "edges holds Python objects, which are never unpickled"),
        ({"kind": np.array("bipartite")}, "kind should be one of"),
    ],
)
def test_arrays_that_contradict_themselves(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, **changes)
    assert message in str(caught.value) and str(tmp_path / "g.npz") in str(caught.value)


def test_limits_of_arrays(tmp_path: Path) -> None:
    for setting, what in (("nodes", 3), ("edges", 2), ("graphs", 4), ("array_bytes", 100), ("classes", 1)):
        with pytest.raises(DataError, match=rf"limits\.{setting}|types should be 0 to 0"):
            read(tmp_path, GraphLimitsConfig.model_validate({setting: what}), node_type_names=None)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_changed_arrays_give_sound_graphs_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """One number of one array is replaced: the graphs are then sound all the same, or refused."""
    arrays = sound()
    name = data.draw(st.sampled_from(["num_nodes", "edges", "edge_offsets", "node_types", "edge_types"]))
    flat = arrays[name].reshape(-1).astype(object)
    flat[data.draw(st.integers(0, len(flat) - 1))] = data.draw(st.integers(-6, 20) | st.just(10**9) | st.just(0.5))
    changed = np.array(flat.tolist()).reshape(arrays[name].shape)
    try:
        raw = read(tmp_path_factory.mktemp("changed"), **{name: changed})
    except DataError as error:
        assert "\n" not in str(error)
        return
    for graph in raw.graphs:
        assert bool((graph.edges[0] < graph.edges[1]).all())
        assert graph.edges.numel() == 0 or int(graph.edges.max()) < int(graph.sizes[0])
        assert int(graph.edge_counts[0]) == graph.edges.shape[1] == len(graph.edge_types)
        assert len(graph.node_types) == int(graph.sizes[0]) and set(graph.node_types.tolist()) <= {0, 1, 2}


def same(one: GraphBatch, other: GraphBatch) -> bool:
    """Equal, with types compared by name."""
    nodes = [[batch.node_names[i] for i in batch.node_types] for batch in (one, other) if batch.node_types is not None]
    edges = [[batch.edge_names[i] for i in batch.edge_types] for batch in (one, other) if batch.edge_types is not None]
    plain = one.edges.tolist() == other.edges.tolist() and one.sizes.tolist() == other.sizes.tolist()
    return plain and len(nodes) != 1 and nodes[:1] == nodes[1:] and edges[:1] == edges[1:]


@pytest.mark.parametrize("typed", [False, True])
def test_what_is_written_is_read_back_with_names(tmp_path: Path, typed: bool) -> None:
    batch = random_batch(1, 9, 8, typed)
    description = {"node_types": ["low", "high", "a b"], "edge_types": ["-", "+"], "kind": "none"} if typed else {}
    if typed:
        batch.node_names, batch.edge_names = ("low", "high", "a b"), ("-", "+")
    written = write_samples(batch, tmp_path / "out", description)
    write_archives([Samples(batch, [], {})], tmp_path / "out", description)
    assert not list((tmp_path / "out").glob(".*"))
    arrays = read_npz(tmp_path / "out" / "graphs.npz")
    assert arrays.node_types == list(batch.node_names)
    for raw in (arrays, read_folder(tmp_path / "out")):
        assert len(raw.graphs) == len(written) == 9
        assert all(same(graph, batch[[i]]) for i, graph in enumerate(raw.graphs))


def test_types_of_graphml_must_be_complete(tmp_path: Path) -> None:
    graph = nx.path_graph(3)
    graph.nodes[0]["type"] = "a"
    nx.write_graphml(graph, tmp_path / "0.graphml")
    with pytest.raises(DataError, match="node 1 has no type, but others have"):
        read_folder(tmp_path)
    nx.set_node_attributes(graph, "a", "type")
    nx.write_graphml(graph, tmp_path / "0.graphml")
    nx.write_graphml(nx.path_graph(3), tmp_path / "1.graphml")
    with pytest.raises(DataError, match=r"1\.graphml has no node types, but 0\.graphml has"):
        read_folder(tmp_path)


def test_the_fingerprint_follows_graphs_and_their_order(tmp_path: Path) -> None:
    batch = random_batch(7, 6, 6, typed=True)
    singles = [batch[[i]] for i in range(6)]
    prints = {GraphSource(singles).fingerprint(), GraphSource(singles[::-1]).fingerprint()}
    prints.add(GraphSource(singles[:5]).fingerprint())
    assert batch.node_types is not None
    batch.node_types[-1] = 2 - batch.node_types[-1] if int(batch.node_types[-1]) != 1 else 0
    prints.add(GraphSource([batch[[i]] for i in range(6)]).fingerprint())
    assert len(prints) == 4
    path = write_npz(random_batch(8, 12, 6), tmp_path / "a.npz")
    twice = [open_graphs(GraphDataConfig(source=str(path))).train for _ in range(2)]
    assert twice[0].fingerprint() == twice[1].fingerprint()  # type: ignore[attr-defined]
