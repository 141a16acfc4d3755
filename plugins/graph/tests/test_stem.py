"""The stem's symmetries: permuting nodes permutes its outputs; swapping two children swaps the ways their edges go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from graph_samples import random_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextscale.testing.helpers import randomize
from nextscale.tokens.inputs import ScaleInput
from nextscale_graph.coarsen import FIRST, SECOND
from nextscale_graph.config import GraphTokenizerConfig
from nextscale_graph.division import Division
from nextscale_graph.layer import Layer
from nextscale_graph.source import describe
from nextscale_graph.state import GrowthState, split_edges
from nextscale_graph.stem import GraphStem
from nextscale_graph.tokenizer import GraphTokenizer

SWAP = torch.tensor([1, 0, 2])


@pytest.fixture(scope="module", params=["plain", "masses", "pooled", "masses, pooled"])
def model(request: pytest.FixtureRequest) -> tuple[GraphTokenizer, GraphStem]:
    """With and without masses, with and without pooled messages."""
    batch = random_batch(3, 20, 12)
    description = describe([batch[[i]] for i in range(20)], [], []) | {"largest": 12}
    options = {"masses": "masses" in request.param, "stem": {"layers": 3, "pooled": "pooled" in request.param}}
    tokenizer = GraphTokenizer(GraphTokenizerConfig.model_validate({"max_nodes": 16, **options}), description)
    stem = tokenizer.build_stem(16)
    assert isinstance(stem, GraphStem)
    randomize(stem, 0)
    return tokenizer, stem.eval()


def states_of(tokenizer: GraphTokenizer, seed: int, kind: str) -> tuple[GrowthState, Tensor] | None:
    """The state before a scale of this kind, of one graph that splits, and the true tokens."""
    for attempt in range(20):
        batch = random_batch(seed + attempt, 1, 12)
        pyramid = tokenizer.encode(batch)
        states = tokenizer.states(pyramid)
        scales = [k for k in range(len(pyramid.schedule)) if tokenizer.scales.kind(k) == kind]
        scales = [k for k in scales if len(states[k].splits) > 2 and pyramid.schedule.lengths[k] > 1]
        if scales:
            k = scales[seed % len(scales)]
            return states[k], pyramid.scale(k)
    return None


def logits_of(tokenizer: GraphTokenizer, stem: GraphStem, state: GrowthState, tokens: Tensor, known: Tensor) -> Tensor:
    inputs: ScaleInput = tokenizer.scale_input(state, 0)
    hidden, memory = stem(inputs, (tokens, known))
    return stem.logits(hidden, memory)[0]


def permuted(state: GrowthState, order: Tensor) -> GrowthState:
    """The same graph, with node i renumbered ``order[i]``."""
    edges = order[state.edges].sort(0).values
    sort = (edges[0] * len(order) + edges[1]).argsort()
    back = order.argsort()
    masses = None if state.masses is None else state.masses[back]
    return replace(
        state,
        edges=edges[:, sort],
        splits=state.splits[back],
        masses=masses,
        parts=state.parts[back],
        spans=state.spans[sort],
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_node_scores_permute_with_nodes(model: tuple[GraphTokenizer, GraphStem], seed: int) -> None:
    tokenizer, stem = model
    found = states_of(tokenizer, seed, "node")
    if found is None:
        return
    state, tokens = found
    size, generator = len(state.splits), torch.Generator().manual_seed(seed)
    order, known = torch.randperm(size, generator=generator), torch.rand(tokens.shape, generator=generator) < 0.5
    with torch.no_grad():
        before = logits_of(tokenizer, stem, state, tokens, known)
        after = logits_of(tokenizer, stem, permuted(state, order), order[tokens], known)
    torch.testing.assert_close(after[:, order], before[:, :size], atol=1e-5, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_edge_scores_permute_with_nodes(model: tuple[GraphTokenizer, GraphStem], seed: int) -> None:
    tokenizer, stem = model
    found = states_of(tokenizer, seed, "edge")
    if found is None:
        return
    state, tokens = found
    size, generator = len(state.splits), torch.Generator().manual_seed(seed)
    order, known = torch.randperm(size, generator=generator), torch.rand(tokens.shape, generator=generator) < 0.5
    renamed = permuted(state, order)
    _, nodes, others = split_edges(state)
    _, new_nodes, new_others = split_edges(renamed)
    where = (order[nodes] * size + order[others]).argsort()  # renamed token i is the old token where[i]
    assert torch.equal(order[nodes][where], new_nodes) and torch.equal(order[others][where], new_others)
    with torch.no_grad():
        before = logits_of(tokenizer, stem, state, tokens, known)
        after = logits_of(tokenizer, stem, renamed, tokens[:, where], known[:, where])
    torch.testing.assert_close(after[:, :3], before[where, :3], atol=1e-5, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_swapped_children_swap_their_patterns(model: tuple[GraphTokenizer, GraphStem], seed: int) -> None:
    tokenizer, stem = model
    found = states_of(tokenizer, seed, "edge")
    if found is None:
        return
    state, tokens = found
    _, nodes, _ = split_edges(state)
    chosen = nodes == nodes[seed % len(nodes)]
    known = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    swapped = torch.where(chosen, SWAP[tokens], tokens)
    parts = state.parts.clone()
    if state.masses is not None:
        node = nodes[chosen][0]
        parts[node] = state.masses[node] - parts[node]
    with torch.no_grad():
        before = logits_of(tokenizer, stem, state, tokens, known)[:, :3]
        after = logits_of(tokenizer, stem, replace(state, parts=parts), swapped, known)[:, :3]
    torch.testing.assert_close(after[~chosen], before[~chosen], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after[chosen], before[chosen][:, SWAP], atol=1e-5, rtol=1e-5)
    assert {FIRST, SECOND} == {0, 1}


def test_chosen_nodes_and_their_neighbours_are_not_drawn_again(model: tuple[GraphTokenizer, GraphStem]) -> None:
    tokenizer, stem = model
    seen = 0
    for seed in range(0, 60, 3):
        found = states_of(tokenizer, seed, "node")
        if found is None:
            continue
        state, tokens = found
        known = torch.zeros_like(tokens, dtype=torch.bool)
        known[:, 0] = True
        with torch.no_grad():
            logits = logits_of(tokenizer, stem, state, tokens, known)[1]
        first = int(tokens[0, 0])
        near = {
            first,
            *state.edges[1][state.edges[0] == first].tolist(),
            *state.edges[0][state.edges[1] == first].tolist(),
        }
        low = set(np.flatnonzero(logits[: len(state.splits)].numpy() < -1e3).tolist())
        if state.masses is not None:  # nodes of mass one are not drawn either
            near |= set((state.masses == 1).nonzero()[:, 0].tolist())
        assert low == near
        seen += 1
    assert seen > 3


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_fully_revealed_samples_change_nothing(model: tuple[GraphTokenizer, GraphStem], seed: int) -> None:
    """The network leaves them out. The logits of the other samples stay the same, and nothing uses their own."""
    tokenizer, stem = model
    batch = random_batch(seed, 3, 12)
    pyramid = tokenizer.encode(batch)
    k = seed % len(pyramid.schedule)
    inputs, tokens = tokenizer.scale_input(tokenizer.states(pyramid)[k], k), pyramid.scale(k)
    assert inputs.mask is not None
    known = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    with torch.no_grad():
        one = stem(inputs, (tokens, known))
        known[seed % 3] = True
        other = stem(inputs, (tokens, known))
    asked = (inputs.mask & ~known).any(1)
    before, after = stem.logits(*one), stem.logits(*other)
    torch.testing.assert_close(after[asked], before[asked], atol=1e-5, rtol=1e-5)
    structure = other[1].structure[0]
    assert not bool((~asked)[structure.graph_of].any()) and len(other[1].nodes) == len(structure.graph_of)


@pytest.mark.parametrize("pooled", [False, True])
def test_distant_parts_of_a_graph_hear_of_each_other_only_if_pooled(pooled: bool) -> None:
    layer = Layer(8, pooled)
    generator = torch.Generator().manual_seed(0)
    nodes, edges = torch.randn(4, 8, generator=generator), torch.randn(2, 8, generator=generator)
    ends, triangles = torch.tensor([[0, 2], [1, 3]]), torch.zeros(3, 0, dtype=torch.long)
    changed = nodes.clone()
    changed[0] = torch.randn(8, generator=generator)
    for graph_of, same in ((torch.zeros(4, dtype=torch.long), not pooled), (torch.tensor([0, 0, 1, 1]), True)):
        with torch.no_grad():
            before = layer(nodes, edges, ends, triangles, graph_of, 2)[0]
            after = layer(changed, edges, ends, triangles, graph_of, 2)[0]
        assert not torch.equal(before[1], after[1]) and torch.equal(before[2:], after[2:]) == same


def test_unseen_sizes_are_hardly_drawn_but_have_a_finite_loss(
    model: tuple[GraphTokenizer, GraphStem],
) -> None:
    tokenizer, stem = model
    seen = {size for size, _ in tokenizer.sizes}
    probabilities = stem.size_logits.softmax(0)
    assert sum(float(probabilities[size]) for size in seen) == pytest.approx(1, abs=1e-6)
    assert float(stem.size_logits.log_softmax(0).min()) > -30 and float(stem.root_logits.min()) > -30


def test_both_orders_of_children_are_equally_likely(model: tuple[GraphTokenizer, GraphStem]) -> None:
    """Also, no child may get a mass of zero, and an unknown mass has no other choice than token 0."""
    tokenizer, stem = model
    if not tokenizer.config.masses:
        pytest.skip("this model draws no masses")
    for seed in range(10):
        found = states_of(tokenizer, seed, "mass")
        if found is None:
            continue
        state, tokens = found
        with torch.no_grad():
            logits = logits_of(tokenizer, stem, state, tokens, torch.zeros_like(tokens, dtype=torch.bool))
        for row, mass in zip(logits, state.masses[state.splits].tolist(), strict=True):
            possible = row > -1e6
            assert possible.nonzero()[:, 0].tolist() == ([0] if mass == 0 else list(range(1, mass)))
            torch.testing.assert_close(row[1:mass], row[1:mass].flip(0))


def test_unseen_masses_are_scored_by_their_features_alone() -> None:
    division = Division(50)
    assert not any(bool(table.weight.any()) for table in (division.lighter, division.heavier, division.whole))
