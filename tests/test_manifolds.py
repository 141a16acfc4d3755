"""Precision, recall and the Inception Score, on sets with known results."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from nextscale.toolkit import manifolds
from nextscale.toolkit.manifolds import compare_manifolds, inception_score, precision_recall


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 40), st.integers(4, 40), st.integers(1, 6), st.integers(0, 10**6))
def test_precision_and_recall_equal_those_of_a_neighbour_search(n: int, m: int, width: int, seed: int) -> None:
    samples, real = normal(n, width, seed=seed), normal(m, width, seed=seed + 1) + 0.5

    def share(x: torch.Tensor, centres: torch.Tensor) -> float:
        found = NearestNeighbors().fit(centres.double().numpy())
        radii = found.kneighbors(n_neighbors=3)[0][:, -1]
        distances = np.linalg.norm(x.double().numpy()[:, None] - centres.double().numpy()[None], axis=-1)
        return float((distances <= radii).any(1).mean())

    assert precision_recall(samples, real) == (share(samples, real), share(real, samples))


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 30), st.integers(1, 3), st.floats(-1e4, 1e4), st.integers(0, 10**6))
def test_a_set_covers_itself_wherever_it_lies(n: int, copies: int, where: float, seed: int) -> None:
    """Also where members repeat, so that some balls have a radius of zero."""
    real = (normal(n, 3, seed=seed) + where).repeat(copies, 1)
    assert precision_recall(real, real) == (1, 1)


def test_what_is_missing_lowers_recall_and_what_is_wrong_lowers_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = normal(60, 2), normal(60, 2, seed=1) + torch.tensor([50.0, 0.0])
    real = torch.cat([left, right])
    assert precision_recall(left, real) == (1, pytest.approx(0.5, abs=0.01))
    expected = precision_recall(torch.cat([left, left + 500]), real)
    assert expected == (pytest.approx(0.5, abs=0.01), pytest.approx(0.5, abs=0.01))
    monkeypatch.setattr(manifolds, "ROWS", 7)  # in blocks
    assert precision_recall(torch.cat([left, left + 500]), real) == expected


def test_sets_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="at least 4 samples per set, got 3 and 9"):
        precision_recall(normal(3, 2), normal(9, 2))
    assert compare_manifolds("x", normal(3, 2), normal(9, 2), normal(9, 2)) == {}
    found = compare_manifolds("x", normal(9, 2), normal(9, 2, seed=1), normal(9, 2))
    assert found["precision_x"] == found["recall_x"] == 1 and set(found) > {"precision_x_floor", "recall_x_floor"}


@given(st.integers(2, 8), st.integers(1, 5))
def test_the_inception_score_counts_classes(classes: int, repeats: int) -> None:
    """Certain and evenly spread over C classes: C. All alike: 1."""
    certain = torch.eye(classes).repeat(repeats, 1)
    assert inception_score(certain, splits=1)[0] == pytest.approx(classes, rel=1e-6)
    assert inception_score(certain.mean(0).expand(20, -1)) == pytest.approx((1, 0), abs=1e-6)


@pytest.mark.parametrize("count", [100, 57])
def test_the_inception_score_is_a_mean_over_parts_that_repeats(count: int) -> None:
    probs = (3 * normal(count, 6)).softmax(1)
    state = torch.random.get_rng_state()
    mean, deviation = inception_score(probs, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state) and (mean, deviation) == inception_score(probs, seed=3)
    shuffled = probs.double()[torch.randperm(count, generator=torch.Generator().manual_seed(3))].numpy()
    size = math.ceil(count / 10)
    parts = [shuffled[i : i + size] for i in range(0, count, size)]
    scores = [np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()) for p in parts]
    assert (mean, deviation) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-6)


def test_an_inception_score_of_too_few_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="over 10 parts needs at least 10 samples, got 9"):
        inception_score(torch.ones(9, 2) / 2)
