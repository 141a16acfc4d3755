"""Layouts: distances on paper follow distances in the graph, and earlier stages lie where their nodes will be."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from graph_samples import random_batch, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.distance import pdist

from nextscale.errors import TrainingError
from nextscale_graph.config import GraphTokenizerConfig
from nextscale_graph.layout import ancestors
from nextscale_graph.source import describe
from nextscale_graph.tokenizer import GraphTokenizer
from nextscale_graph.writers import layout, write_film, write_grid


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_nodes_of_any_graph_are_apart_and_stay_in_place(seed: int) -> None:
    graph = random_graph(np.random.default_rng(seed), 30)
    places = np.array(list(layout(graph).values()))
    assert places.shape == (len(graph), 2) and np.isfinite(places).all()
    assert len(graph) == 1 or pdist(places).min() > 1e-3
    assert np.array_equal(places, np.array(list(layout(graph).values())))


@pytest.mark.parametrize("graph", [nx.grid_2d_graph(12, 25), nx.random_labeled_tree(300, seed=1), nx.cycle_graph(200)])
def test_distances_on_paper_follow_those_in_the_graph(graph: nx.Graph) -> None:
    """A random layout has a correlation near 0."""
    places = layout(graph)
    lengths = dict(nx.all_pairs_shortest_path_length(graph))
    steps = [lengths[a][b] for i, a in enumerate(places) for b in list(places)[i + 1 :]]
    assert np.corrcoef(steps, pdist(np.array(list(places.values()))))[0, 1] > 0.85


def test_a_component_too_large_to_refine_is_placed() -> None:
    places = np.array(list(layout(nx.grid_2d_graph(60, 50)).values()))
    assert np.isfinite(places).all() and len(np.unique(places.round(6), axis=0)) == 3000


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_earlier_nodes_lie_at_the_mean_of_what_they_become(seed: int, typed: bool) -> None:
    """What a node becomes is known from masses, which are counted for connected graphs."""
    batch = random_batch(seed % 1000, 3, 12, typed)
    names = (["a", "b", "c"], ["x", "y"]) if typed else ([], [])
    description = describe([batch[[i]] for i in range(3)], *names) | {"largest": 12}
    tokenizer = GraphTokenizer(GraphTokenizerConfig(max_nodes=12, masses=True), description)
    states = tokenizer.states(tokenizer.encode(batch))
    final = tokenizer.decode(states[-1])
    rng = np.random.default_rng(seed)
    for i in range(3):
        whole = final[[i]]
        places = rng.random((int(whole.sizes[0]), 2))
        assert sorted(whole.lineage.tolist()) == list(range(len(places)))
        for state in states[2:]:
            stage = tokenizer.decode(state)[[i]]
            means = ancestors(places, whole.lineage.numpy(), stage.lineage.numpy())
            assert len(means) == int(stage.sizes[0])
            masses = state.masses[state.graph_of == i].numpy()
            if masses.all():
                ends = masses.cumsum()
                expected = [places[end - mass : end].mean(0) for end, mass in zip(ends, masses, strict=True)]
                np.testing.assert_allclose(means, expected)


def test_pictures_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    batch = random_batch(4, 5, 9)
    for path in (write_grid(batch, tmp_path / "grid.png"), write_film([batch[[0]], batch[[1]]], tmp_path / "film.png")):
        with Image.open(path) as picture:
            picture.verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.png", "grid.png"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="was not saved"):
        write_grid(batch, tmp_path / "file" / "grid.png")
