"""The laws that graphs begin with: as counted, whatever base digits have, and sensible for sizes never seen."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale_graph.graphs import from_networkx
from nextscale_graph.laws import ENOUGH, EdgeLaw, most_edges
from nextscale_graph.source import describe


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(6, 20), st.integers(1, 9), min_size=1), st.integers(2, 60))
def test_digits_have_the_law_of_the_data(times: dict[int, int], base: int) -> None:
    """Where enough graphs have that many nodes and components; what others are like is no matter."""
    times = {edges: count * ENOUGH for edges, count in times.items()}
    rows = [[8, 1, edges, count] for edges, count in times.items()]
    law = EdgeLaw([[8, 2, 13, 500], [7, 1, 9, 500], *rows, [9, 3, 7, 500]])
    base = max(base, -(-21 // base))  # two digits are enough
    high = law.logits(torch.tensor([[8, 1, 1, 0, -1]]), base).softmax(1)[0]
    for edges in range(21):
        low = law.logits(torch.tensor([[8, 1, 1, 0, edges // base]]), base).softmax(1)[0]
        share = times.get(edges, 0) / sum(times.values())
        assert float(high[edges // base] * low[edges % base]) == pytest.approx(share, abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 30), st.integers(1, 200))
def test_trees_of_any_size_have_one_edge_less(seen: int, size: int) -> None:
    law = EdgeLaw(describe([from_networkx([nx.path_graph(seen)])], [], [])["edges"])
    assert law.counts(size, 1, 1, 0) == {size - 1: 1}
    assert law.counts(size + 9, 1, 9, 8) == {size + 8: 1}


def test_graphs_of_the_nearest_sizes_stand_for_rare_ones() -> None:
    law = EdgeLaw([[10, 1, 14, ENOUGH], [30, 1, 44, ENOUGH - 1], [40, 1, 39, 1]])  # half an edge a node beyond a tree
    assert law.counts(12, 1, 1, 0) == {17: ENOUGH}
    assert law.counts(30, 1, 1, 0) == {44: ENOUGH - 1, 29: 1}
    assert law.counts(3, 1, 1, 0) == {3: ENOUGH}, "there are no more pairs"


def test_what_is_there_already_goes_on_as_the_data_do() -> None:
    """Half of a graph, with more or fewer edges than the data would have: the other half is as the data."""
    law = EdgeLaw([[21, 1, 40, 50]])  # 20 splits, 20 edges doubled
    for edges in (10, 15, 30):
        assert law.counts(21, 1, 11, edges) == {edges + 10 + 10: 50}
    full = most_edges(20, 1)
    assert law.counts(21, 1, 20, full) == {full + 2: 50}
