"""Large graphs: results are those of the plain definitions, and nothing takes memory for every pair of nodes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import networkx as nx
import numpy as np
import pytest
import torch
from graph_dense import coarsen_plainly
from graph_samples import random_batch, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coarsening import tokenizer_for

from nextscale_graph.coarsen import STRATEGIES, coarsen, strategy
from nextscale_graph.graphs import from_networkx
from nextscale_graph.state import GrowthState, choose


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(STRATEGIES)), st.sampled_from([0.02, 0.125, 0.5]))
def test_coarsening_follows_its_definition(seed: int, name: str, ratio: float) -> None:
    graph = random_graph(np.random.default_rng(seed), 25)
    batch = from_networkx([graph])
    found = coarsen(len(graph), batch.edges.numpy(), strategy(name), ratio, np.random.default_rng(seed))
    expected = coarsen_plainly(graph, name, ratio, np.random.default_rng(seed))
    assert found[:2] == expected[:2] and found[2].tolist() == expected[2].tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_tokens_choose_nodes_in_order(seed: int) -> None:
    """Whatever tokens are drawn: one that points at a chosen node or at a neighbour of one has no effect."""
    rng = np.random.default_rng(seed)
    batch = random_batch(seed, 3, 20)
    tokenizer = tokenizer_for(batch)
    state: GrowthState = tokenizer.states(tokenizer.encode(batch))[-1]
    tokens = torch.stack([torch.from_numpy(rng.integers(int(size), size=9)) for size in batch.sizes])
    real = torch.arange(9) < torch.from_numpy(rng.integers(10, size=(3, 1)))
    expected = []
    for graph, row, counts in zip(batch.to_networkx(), tokens.tolist(), real.tolist(), strict=True):
        named = tokenizer.decode(state).to_networkx()[len(expected)]
        assert len(named) == len(graph)
        chosen: set[int] = set()
        for node, counted in zip(row, counts, strict=True):
            if counted and not chosen & {node, *named[node]}:
                chosen.add(node)
        expected.append([node in chosen for node in range(len(named))])
    assert choose(state, tokens, real).tolist() == [one for row in expected for one in row]


LARGE: dict[str, Callable[[], nx.Graph]] = {
    "grid": lambda: nx.convert_node_labels_to_integers(nx.grid_2d_graph(100, 200)),
    "tree": lambda: nx.random_labeled_tree(20_000, seed=0),
}


@pytest.mark.parametrize("name", LARGE)
def test_coarsening_holds_nothing_for_every_pair_of_nodes(name: str) -> None:
    """20,000 nodes have 400 million pairs."""
    edges = from_networkx([LARGE[name]()]).edges.numpy()
    tracemalloc.start()
    roots, levels, order = coarsen(20_000, edges, strategy("cheapest"), 0.5, np.random.default_rng(0))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert roots == 1 and sum(len(level.splits) for level in levels) == 19_999 and len(set(order.tolist())) == 20_000
    assert most < 100e6
