"""Coarsening and its reversal: lossless for every graph, and the properties of each level."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from graph_samples import random_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale_graph.coarsen import STRATEGIES, coarsen, contract, independent_edges, strategy
from nextscale_graph.config import GraphDataConfig, GraphTokenizerConfig
from nextscale_graph.data import open_graphs
from nextscale_graph.graphs import GraphBatch, concatenate, from_networkx
from nextscale_graph.readers.generators import generate
from nextscale_graph.source import describe
from nextscale_graph.structure import HEADS
from nextscale_graph.tokenizer import GraphTokenizer, usual_count
from nextscale_graph.triangles import triangles


def tokenizer_for(batch: GraphBatch, **settings: object) -> GraphTokenizer:
    singles = [batch[[i]] for i in range(len(batch))]
    names = (["a", "b", "c"], ["x", "y"]) if batch.node_types is not None else ([], [])
    description = describe(singles, *names) | {"largest": int(batch.sizes.max())}
    config = GraphTokenizerConfig.model_validate({"max_nodes": max(256, int(batch.sizes.max())), **settings})
    return GraphTokenizer(config, description)


def assert_lossless(batch: GraphBatch, tokenizer: GraphTokenizer) -> None:
    """The decoded graphs equal those of the batch, with nodes in the order that encoding returns."""
    pyramid, orders = tokenizer.encode_ordered(batch)
    decoded = tokenizer.decode(tokenizer.states(pyramid)[-1])
    for graph, grown, order in zip(batch.to_networkx(), decoded.to_networkx(), orders, strict=True):
        assert sorted(order.tolist()) == list(range(len(graph)))
        named = nx.relabel_nodes(grown, dict(enumerate(order.tolist())))
        assert nx.utils.graphs_equal(named, graph)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from(sorted(STRATEGIES)), st.sampled_from([0.02, 0.125, 0.5]), st.booleans()
)
def test_tokens_are_lossless(seed: int, name: str, ratio: float, typed: bool) -> None:
    rng = np.random.default_rng(seed)
    largest = int(rng.choice([3, 12, 40]))
    batch = from_networkx([random_graph(rng, largest, typed) for _ in range(3)])
    batch.seeds = torch.from_numpy(rng.integers(2**62, size=3))
    assert_lossless(batch, tokenizer_for(batch, coarsening=name, ratio=ratio))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(STRATEGIES)))
def test_masses_add_up(seed: int, name: str) -> None:
    """At every level the masses of a connected graph sum to its number of nodes, and in the end each is one. With
    masses, tokens are still lossless, and all tokens of a mass scale are drawn together."""
    rng = np.random.default_rng(seed)
    batch = from_networkx([random_graph(rng, 20) for _ in range(3)])
    tokenizer = tokenizer_for(batch, coarsening=name, masses=True)
    assert_lossless(batch, tokenizer)
    pyramid = tokenizer.encode(batch)
    states = tokenizer.states(pyramid)
    roots = pyramid.scale(1)[:, 0]
    for k in range(len(HEADS), len(pyramid.schedule)):
        total = torch.zeros_like(roots).index_add_(0, states[k].graph_of, states[k].masses)
        assert torch.equal(total, torch.where(roots == 1, batch.sizes, 0))
        if tokenizer.scales.kind(k) == "mass":
            groups = tokenizer.scale_input(states[k], k).groups
            assert bool((groups.sort(1).values.diff(dim=1) > 0).all())
    assert torch.equal(states[-1].masses, (roots == 1).long().repeat_interleave(batch.sizes))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(STRATEGIES)))
def test_an_edge_spans_the_smallest_node_that_held_both_its_ends(seed: int, name: str) -> None:
    """All nodes that come from one node are next to each other in the end, so earlier nodes are intervals."""
    graph = nx.connected_watts_strogatz_graph(14, 4, 0.3, seed=seed)
    batch = from_networkx([graph])
    tokenizer = tokenizer_for(batch, coarsening=name, masses=True)
    states = tokenizer.states(tokenizer.encode(batch))
    intervals = set()
    for state in states[len(HEADS) :]:
        ends = state.masses.cumsum(0).tolist()
        intervals |= {(end - mass, end) for mass, end in zip(state.masses.tolist(), ends, strict=True)}
    for first, second, span in zip(*states[-1].edges.tolist(), states[-1].spans.tolist(), strict=True):
        assert span == min(stop - start for start, stop in intervals if start <= first and second < stop)


def test_the_inside_goes_first_and_the_border_stays() -> None:
    """Tested on triangulations of points in the plane. With this strategy, the border still has its length in the whole
    graph, 3 n - 3 - edges, when 24 of 64 nodes are left. If the cheapest edges go first, it shrinks."""
    batch = concatenate(generate("planar").graphs[:4])
    border = 3 * batch.sizes - 3 - batch.edge_counts
    kept = {}
    for name in ("interior", "cheapest"):
        tokenizer = tokenizer_for(batch, coarsening=name)
        states = [state for state in tokenizer.states(tokenizer.encode(batch)) if int(state.sizes.min()) >= 24]
        kept[name] = 3 * states[0].sizes - 3 - states[0].edge_counts
    assert int((kept["interior"] - border).abs().max()) <= 1 and bool((kept["cheapest"] < border - 2).all())


@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_communities_are_one_node_each_before_they_are_joined(ratio: float) -> None:
    for graph in generate("sbm").graphs[:4]:
        tokenizer = tokenizer_for(graph, coarsening="communities", ratio=ratio, masses=True)
        size, rng = int(graph.sizes[0]), np.random.default_rng(0)  # 0, as for graphs without a seed
        member = tokenizer.coarsening.begin(size, graph.edges.numpy(), rng)
        assert member is not None
        states = tokenizer.states(tokenizer.encode(graph))
        found = [sorted(state.masses.tolist()) for state in states if state.masses is not None]
        assert sorted(np.bincount(member).tolist()) in found


EXTREME = [
    nx.complete_graph(60), nx.star_graph(199), nx.path_graph(200), nx.empty_graph(200),
    nx.disjoint_union(nx.cycle_graph(90), nx.grid_2d_graph(10, 11)),
]  # fmt: skip


@pytest.mark.parametrize("graph", EXTREME, ids=str)
def test_large_and_extreme_graphs_are_lossless(graph: nx.Graph) -> None:
    batch = from_networkx([graph])
    assert_lossless(batch, tokenizer_for(batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["planar", "tree", "sbm", "community_small", "ego_small", "enzymes", "grid"])
def test_benchmarks_are_lossless(benchmarks: Path, name: str) -> None:
    data = open_graphs(GraphDataConfig(source=str(benchmarks / f"{name}.npz")))
    tokenizer = GraphTokenizer(GraphTokenizerConfig(max_nodes=512), data.description)
    for source in filter(None, (data.train, data.validation, data.test)):
        for first in range(0, len(source), 32):
            rows = np.arange(first, min(first + 32, len(source)))
            assert_lossless(source.batch(rows, None).samples, tokenizer)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(STRATEGIES)))
def test_contracted_edges_are_independent(seed: int, name: str) -> None:
    """No two are adjacent or joined by an edge. Contraction keeps components apart, planar graphs planar and trees
    trees."""
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, 20)
    if not graph.number_of_edges():
        return
    size, edges, method = len(graph), from_networkx([graph]).edges.numpy(), strategy(name)
    pairs = independent_edges(size, edges, method, np.ones(size, int), method.begin(size, edges, rng), 0.3, rng)
    ends = pairs.flatten()
    assert len(set(ends.tolist())) == len(ends)
    joined = graph.subgraph(ends.tolist()).number_of_edges()
    assert joined == len(pairs), "the only edges among contracted nodes are the contracted ones"
    coarse, parents = contract(size, edges, pairs)
    after = nx.empty_graph(size - len(pairs))
    after.add_edges_from(coarse.T.tolist())
    assert len(after) == len(graph) - len(pairs)
    assert nx.number_connected_components(after) == nx.number_connected_components(graph)
    assert not nx.check_planarity(graph)[0] or nx.check_planarity(after)[0]
    assert not nx.is_forest(graph) or nx.is_forest(after)
    expected = {frozenset((int(parents[a]), int(parents[b]))) for a, b in graph.edges if parents[a] != parents[b]}
    assert {frozenset(edge) for edge in after.edges} == expected


def test_the_distribution_of_tokens_does_not_depend_on_node_order() -> None:
    """Every description comes up equally often for a graph and for a renumbering of it, within five standard
    deviations."""
    graph = nx.lollipop_graph(3, 2)
    renumbered = nx.relabel_nodes(graph, {0: 4, 1: 2, 2: 0, 3: 3, 4: 1})
    counts: list[dict[str, int]] = [{}, {}]
    number = 600
    for which, one in enumerate((graph, renumbered)):
        edges = np.array(sorted(sorted(edge) for edge in one.edges)).T
        for seed in range(number):
            _, levels, _ = coarsen(5, edges, strategy("cheapest"), 0.125, np.random.default_rng([which, seed]))
            counts[which][str(levels)] = counts[which].get(str(levels), 0) + 1
    for description in {*counts[0], *counts[1]}:
        ours, theirs = (each.get(description, 0) for each in counts)
        assert abs(ours - theirs) <= 5 * np.sqrt(ours + theirs + 1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_triangle_is_found_once(seed: int) -> None:
    graph = random_graph(np.random.default_rng(seed), 15)
    batch = from_networkx([graph])
    found = triangles(batch.edges, len(graph))
    nodes = [frozenset(batch.edges[:, sides].flatten().tolist()) for sides in found.T]
    expected = {frozenset(clique) for clique in nx.enumerate_all_cliques(graph) if len(clique) == 3}
    assert all(len(each) == 3 for each in nodes)
    assert len(nodes) == len(set(nodes)) and set(nodes) == expected


def test_usual_counts_lead_to_the_target() -> None:
    for target in (1, 2, 7, 64, 200):
        size, levels = 1, 0
        while size < target:
            size, levels = size + usual_count(size, target, 0.125), levels + 1
        assert size == target and levels < 60
    assert usual_count(64, 64, 0.125) == 0
