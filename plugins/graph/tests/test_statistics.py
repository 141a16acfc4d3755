"""The metrics: published distances of training to test graphs, and which graphs are valid, unique and novel."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from nextscale_graph.config import GraphDataConfig
from nextscale_graph.data import open_graphs
from nextscale_graph.evaluate import evaluate_samples
from nextscale_graph.readers.generators import COUNTS, GENERATORS, generate
from nextscale_graph.statistics import STATISTICS, distances, gdss_distances, histograms, mmd_emd, mmd_tv
from nextscale_graph.validity import is_block_model, is_planar, is_tree, unique_and_novel

PUBLISHED = {"planar": {"degree": 0.0002, "clustering": 0.0310, "orbit": 0.0005, "spectrum": 0.0038}}
"""Distances of training to test graphs, as every paper on this benchmark reports them
(https://arxiv.org/abs/2204.01613)."""


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_training_against_test_graphs_is_as_published(benchmarks: Path, name: str) -> None:
    data = open_graphs(GraphDataConfig(source=str(benchmarks / f"{name}.npz")))
    assert data.test is not None
    train, test = (
        source.batch(np.arange(len(source)), None).samples.to_networkx() for source in (data.train, data.test)
    )
    found = {}
    for key in PUBLISHED[name]:
        statistic, sigma, normalized = STATISTICS[key]
        found[key] = round(mmd_tv(statistic(train), statistic(test), sigma, normalized), 4)
    assert found == PUBLISHED[name]


def test_distances_of_a_set_to_itself_are_zero() -> None:
    graphs = [nx.path_graph(5), nx.cycle_graph(6), nx.complete_graph(4)]
    found = histograms(graphs)
    assert distances(found, found) == pytest.approx(dict.fromkeys(STATISTICS, 0.0), abs=1e-12)
    assert distances(found, histograms([nx.star_graph(9)]))["degree"] > 0.1


def test_the_kernel_is_the_total_variation_gaussian() -> None:
    one, other = [np.array([1.0, 0.0])], [np.array([0.0, 1.0])]
    assert mmd_tv(one, other, 1.0, True) == pytest.approx(2 - 2 * np.exp(-0.5), abs=1e-5)


def test_the_other_protocol_uses_the_earth_movers_distance() -> None:
    """One unit of mass, two bins apart: a distance of 2 / scaling."""
    one, other = [np.array([1.0])], [np.array([0.0, 0.0, 1.0])]
    assert mmd_emd(one, other, 1.0, 4.0) == pytest.approx(2 - 2 * np.exp(-0.125), abs=1e-5)
    graphs = [nx.path_graph(5), nx.cycle_graph(6)]
    found = histograms(graphs)
    assert gdss_distances(found, found) == pytest.approx(dict.fromkeys(("degree", "clustering", "orbit"), 0.0))


def test_statistics_without_a_floor_have_no_ratio() -> None:
    """As published: the orbit floor of trees rounds to zero at four decimals, and trees have no triangles at all."""
    data = open_graphs(GraphDataConfig(source="tree"))
    found = evaluate_samples(data.validation.batch(np.arange(10), None).samples, data)
    ratios = {name: found[f"ratio_{name}"] for name in STATISTICS if f"ratio_{name}" in found}
    assert set(ratios) == {"degree", "spectrum", "wavelet"} and found["mmd_orbit"] > found["floor_orbit"] > 0
    assert found["ratio"] == pytest.approx(np.mean(list(ratios.values())))
    assert ratios["degree"] == found["mmd_degree"] / round(found["floor_degree"], 4)


def test_validity() -> None:
    assert is_planar(nx.cycle_graph(5)) and not is_planar(nx.complete_graph(5))
    assert not is_planar(nx.empty_graph(2)) and is_planar(nx.empty_graph(1))
    assert is_tree(nx.path_graph(4)) and not is_tree(nx.cycle_graph(4)) and not is_tree(nx.empty_graph(2))
    assert not is_block_model(nx.complete_graph(60)) and not is_block_model(nx.path_graph(60))


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_generated_graphs_are_valid_and_the_same_every_time(name: str) -> None:
    raw = generate(name)
    assert raw.splits is not None and {split: raw.splits.count(split) for split in COUNTS} == COUNTS
    few = [one.to_networkx()[0] for one in raw.graphs[::20]]
    check = {"planar": is_planar, "tree": is_tree}.get(name, nx.is_connected)
    assert all(check(graph) for graph in few)
    if name == "sbm":
        assert np.mean([is_block_model(graph) for graph in few]) > 0.6
    again = GENERATORS[name](np.random.default_rng([0, 20]))
    assert nx.utils.graphs_equal(nx.convert_node_labels_to_integers(again), few[1])


def test_unique_and_novel_go_by_isomorphism() -> None:
    path, renamed = nx.path_graph(4), nx.relabel_nodes(nx.path_graph(4), {0: 2, 1: 0, 2: 3, 3: 1})
    unique, novel = unique_and_novel([nx.star_graph(3), path, renamed, nx.cycle_graph(4)], [nx.cycle_graph(4)])
    assert unique.tolist() == [True, True, False, True]
    assert novel.tolist() == [True, True, True, False]
