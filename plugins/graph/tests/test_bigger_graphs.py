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

from nextscale.conditioning import ConditionSpec
from nextscale.config.sections import TransformerConfig
from nextscale.data import DataSplits
from nextscale.errors import ConfigError
from nextscale.storage.models import new_transformer
from nextscale.training.describe import transformer_flops
from nextscale.transformer import ScaleTransformer
from nextscale_graph.coarsen import STRATEGIES, coarsen, strategy
from nextscale_graph.graphs import from_networkx
from nextscale_graph.source import GraphSource
from nextscale_graph.state import GrowthState, choose
from nextscale_graph.validity import classes


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


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_logits_by_scale_are_the_logits(seed: int, masses: bool, typed: bool) -> None:
    """They are as wide as the tokens of each scale need, and the losses are the same to the last bit."""
    batch = random_batch(seed, 3, 20, typed)
    tokenizer = tokenizer_for(batch, masses=masses)
    stem = tokenizer.build_stem(16)
    pyramid = tokenizer.encode(batch)
    with torch.no_grad():
        hidden, memory = stem(tokenizer.teacher_forcing(pyramid), None)
        parts, whole = stem.logits_by_scale(hidden, memory), stem.logits(hidden, memory)
    assert [part.shape[1] for part in parts] == list(pyramid.schedule.lengths)
    for kind, part in zip(tokenizer.scale_names(len(parts)), parts, strict=True):
        assert kind not in ("count", "node", "mass", "edge") or part.shape[2] <= 32 < tokenizer.vocabulary
    space = tokenizer.token_space
    real = torch.ones(pyramid.tokens.shape, dtype=torch.bool) if pyramid.mask is None else pyramid.mask
    assert torch.equal(space.judge(parts, pyramid.tokens)[0][real], space.loss(whole, pyramid.tokens)[real])
    assert torch.equal(space.judge(parts, pyramid.tokens)[1][real], space.accuracy(whole, pyramid.tokens)[real])


def test_the_dry_run_counts_what_the_network_multiplies() -> None:
    batch = random_batch(3, 9, 15)
    tokenizer, sizes = tokenizer_for(batch), ConditionSpec(name="size", kind="count", size=100)
    source = GraphSource([batch[[i]] for i in range(len(batch))])
    data = DataSplits(source, source, None, (sizes,), {})
    settings: dict[str, object] = {"width": 16, "heads": 1, "positions": "rotary", "scale_embedding": False}

    def model(**changes: object) -> ScaleTransformer:
        return new_transformer(TransformerConfig.model_validate(settings | changes), tokenizer, data.conditions)

    def count(**changes: object) -> float:
        return transformer_flops(model(**changes), lambda: tokenizer, data)

    real, products = model(depth=0), []
    for name, module in real.named_modules():
        if isinstance(module, torch.nn.Linear) and "adaln" not in name:
            module.register_forward_hook(lambda own, _, out: products.append(2.0 * out.numel() * own.in_features))
    one = source.batch(np.abs(source.lengths - source.lengths.mean()).argmin()[None], None)
    inputs = tokenizer.teacher_forcing(tokenizer.encode(one.samples), one.conditions)
    real(inputs, real.conditioner(one.conditions, 1))
    assert count(depth=0) == pytest.approx(sum(products))
    lengths = np.array(tokenizer.schedule().lengths, float)
    unseen = (lengths.sum() ** 2 - np.square(lengths).sum()) / 2  # by markov attention, of what full attention sees
    assert count(depth=1) - count(depth=1, attention="markov") == pytest.approx(4 * 16 * unseen)


def test_the_vocabulary_is_as_large_as_the_data_need() -> None:
    small, large = from_networkx([nx.path_graph(9)]), from_networkx([nx.path_graph(300)])
    assert tokenizer_for(small, max_nodes=None).vocabulary == 257
    assert tokenizer_for(large, max_nodes=None).vocabulary == 301
    with pytest.raises(ConfigError, match=r"256 is less than the 300 nodes .*: set tokenizer\.max_nodes=300, or null"):
        tokenizer_for(large, max_nodes=256)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_classes_are_those_of_isomorphism(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graphs = [nx.empty_graph(0), *(random_graph(rng, 5) for _ in range(12))]
    expected = [next(j for j in range(i + 1) if nx.is_isomorphic(graphs[j], graphs[i])) for i in range(len(graphs))]
    assert classes(graphs) == expected


@pytest.mark.parametrize("name", LARGE)
def test_large_graphs_are_compared(name: str) -> None:
    """Without telling nodes apart first, this would take longer than anyone waits."""
    rng = np.random.default_rng(0)
    graph = nx.convert_node_labels_to_integers(nx.grid_2d_graph(20, 50))
    graph = nx.random_labeled_tree(1000, seed=1) if name == "tree" else graph
    renamed = nx.relabel_nodes(graph, dict(enumerate(rng.permutation(1000).tolist())))
    other = nx.Graph(graph.edges)
    other.remove_edge(*next(iter(graph.edges)))
    assert classes([graph, renamed, other]) == [0, 0, 2]
