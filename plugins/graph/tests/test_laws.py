"""The laws that graphs begin with: as counted, whatever base digits have, and sensible for sizes never seen."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from graph_samples import random_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale_graph.graphs import from_networkx
from nextscale_graph.laws import EdgeLaw, bounds
from nextscale_graph.source import describe


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 60))
def test_digits_have_the_law_that_was_counted(seed: int, base: int) -> None:
    batch = random_batch(seed, 20, 8)
    rows = describe([batch[[i]] for i in range(20)], [], [])["edges"]
    assert sum(count for *_, count in rows) == 20
    size, roots, *_ = rows[seed % len(rows)]
    law, one = EdgeLaw(rows), torch.tensor([size])
    counts = law.counts(size, roots)
    assert all(bounds(size, roots)[0] <= edges <= bounds(size, roots)[1] for edges in counts)
    high = law.logits(one, torch.tensor([roots]), None, base).softmax(1)[0]
    for edges, count in counts.items():
        low = law.logits(one, torch.tensor([roots]), torch.tensor([edges // base]), base).softmax(1)[0]
        assert float(high[edges // base] * low[edges % base]) == pytest.approx(count / sum(counts.values()), abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 30), st.integers(1, 200))
def test_trees_of_any_size_have_one_edge_less(seen: int, size: int) -> None:
    tree = from_networkx([nx.path_graph(seen)])
    assert EdgeLaw(describe([tree], [], [])["edges"]).counts(size, 1) == {size - 1: 1}


def test_graphs_of_the_nearest_size_stand_for_one_never_seen() -> None:
    law = EdgeLaw([[10, 1, 14, 3], [30, 1, 44, 1]])  # half an edge a node beyond a tree
    assert law.counts(12, 1) == {17: 3} and law.counts(28, 1) == {41: 1}
    assert law.counts(3, 1) == {3: 3}  # no more than there are pairs
