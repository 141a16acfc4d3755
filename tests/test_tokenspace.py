from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nextscale.tokens.space import TIE, Bits, Codes, draw_rows, filter_logits

SEEDS = st.integers(0, 2**32)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed)[0])


def untied(logits: torch.Tensor) -> torch.Tensor:
    assume((logits.sort(-1).values.diff(dim=-1) > 2 * TIE).all())
    return logits


@given(SEEDS, st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_top_k_keeps_exactly_the_likeliest(seed, top_k):
    logits = untied(normal(seed, 2, 3, 9))
    kept = filter_logits(logits, top_k).isfinite()
    if 0 < top_k < 9:
        assert (kept.sum(-1) == top_k).all()
        assert (logits.masked_fill(~kept, math.inf).amin(-1) > logits.masked_fill(kept, -math.inf).amax(-1)).all()
    else:
        assert kept.all()


@given(SEEDS, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_top_p_keeps_the_smallest_set_of_that_probability(seed, top_p):
    logits = untied(3 * normal(seed, 4, 1, 9))
    kept = filter_logits(logits, top_p=top_p).isfinite()
    for probs, chosen in zip(logits.double().softmax(-1)[:, 0], kept[:, 0], strict=True):
        size = int(chosen.sum())
        order = probs.argsort(descending=True)
        assert set(order[:size].tolist()) == set(chosen.nonzero()[:, 0].tolist()) and size >= 1
        assert probs[order[:size]].sum() >= top_p - 1e-6
        assert size == 1 or probs[order[: size - 1]].sum() <= top_p + 2 * TIE


def test_top_p_comes_after_top_k():
    logits = torch.tensor([[[0.5, 0.3, 0.1, 0.1]]]).log()
    assert filter_logits(logits, 2, 0.6).isfinite().tolist() == [[[True, False, False, False]]]
    assert filter_logits(logits, 0, 0.6).isfinite().tolist() == [[[True, True, False, False]]]


@pytest.mark.parametrize("truncation", [(1, 1.0), (2, 1.0), (0, 0.0), (0, 0.35), (0, 0.5)])
def test_logits_equal_within_rounding_are_kept_together(truncation):
    kept = filter_logits(torch.tensor([0.0, 2.0, 2.000001, 1.999999]), *truncation).isfinite()
    assert kept.tolist() == [False, True, True, True]
    for nearly_even in (0.4999999, 0.5000001):
        assert filter_logits(torch.tensor([nearly_even, 1 - nearly_even]).log(), top_p=0.5).isfinite().all()


def test_excluded_tokens_stay_excluded():
    logits = torch.tensor([[[-math.inf, 0.0, 1.0]]])
    for top_k, top_p in ((0, 1.0), (3, 1.0), (2, 0.0), (0, 0.999999)):
        assert filter_logits(logits, top_k, top_p)[0, 0, 0] == -math.inf


@given(st.lists(SEEDS, min_size=2, max_size=5))
@settings(max_examples=40, deadline=None)
def test_a_generator_per_sample_makes_samples_independent(seeds):
    probs = normal(0, len(seeds), 6, 8).softmax(-1)
    together = draw_rows(probs, seeded(*seeds))
    for i, seed in enumerate(seeds):
        assert torch.equal(together[i], draw_rows(probs[i : i + 1], seeded(seed))[0])


def test_as_many_generators_as_samples_are_needed():
    with pytest.raises(ValueError):
        draw_rows(torch.full((3, 1, 2), 0.5), seeded(0, 1))


@pytest.mark.parametrize("generators", [seeded(0)[0], seeded(*range(2))])
def test_codes_are_drawn_by_their_probability(generators):
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(2, 4000, 3)
    share = F.one_hot(Codes(3).draw(logits, generators, temperature=2.0), 3).float().mean((0, 1))
    expected = torch.tensor([0.0, 0.5, 1.0]).softmax(-1)
    assert (share - expected).abs().max() < 0.02


def test_codes_loss_accuracy_and_greedy():
    logits, tokens = normal(0, 2, 5, 7), torch.randint(7, (2, 5), generator=seeded(1)[0])
    space = Codes(7)
    picked = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(space.loss(logits, tokens), -picked)
    smooth = -0.9 * picked - 0.1 * logits.log_softmax(-1).mean(-1)
    torch.testing.assert_close(space.loss(logits, tokens, 0.1), smooth)
    greedy = space.draw(logits, None, top_k=1)
    assert torch.equal(greedy, logits.argmax(-1)) and (space.accuracy(logits, greedy) == 1).all()
    assert torch.equal(space.draw(logits, None, top_p=0.0), greedy)


def test_bits_loss_is_the_sum_of_binary_cross_entropies():
    logits, tokens = normal(0, 2, 5, 4), torch.randint(2, (2, 5, 4), generator=seeded(1)[0])
    probs = logits.sigmoid()
    expected = -torch.where(tokens == 1, probs, 1 - probs).log().sum(-1)
    torch.testing.assert_close(Bits(4).loss(logits, tokens), expected)
    smooth = F.binary_cross_entropy(probs, tokens * 0.9 + 0.05, reduction="none").sum(-1)
    torch.testing.assert_close(Bits(4).loss(logits, tokens, 0.1), smooth)


def test_bits_are_drawn_one_by_one():
    space, logits = Bits(2), torch.tensor([-1.0, 2.0]).expand(2, 4000, 2)
    for generators in (seeded(0)[0], seeded(0, 1)):
        drawn = space.draw(logits, generators)
        assert drawn.shape == (2, 4000, 2) and drawn.dtype == torch.long
        assert (drawn.float().mean((0, 1)) - logits[0, 0].sigmoid()).abs().max() < 0.02
    assert (space.draw(logits, None, top_k=1) == torch.tensor([0, 1])).all()
    # The likelier values have probabilities 0.73 and 0.88, so with top_p 0.8 only the second is certain.
    drawn = space.draw(logits, seeded(0)[0], top_p=0.8).float().mean((0, 1))
    assert 0.2 < drawn[0] < 0.35 and drawn[1] == 1
    assert space.accuracy(logits, torch.ones(2, 4000, 2, dtype=torch.long)).unique().tolist() == [0.5]


@pytest.mark.parametrize("space", [Codes(5), Bits(3)])
def test_embeddings_tell_tokens_apart(space):
    tokens = torch.randint(space.vocabulary, (2, 4, *space.token_shape))
    embedding = space.embedding(8)
    assert embedding(tokens).shape == (2, 4, 8)
    assert not torch.allclose(embedding(tokens), embedding((tokens + 1) % space.vocabulary))
    assert space.describe() == type(space)(space.num_logits).describe() != type(space)(9).describe()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_matches_torch(smoothing: float) -> None:
    logits = (4 * torch.randn(3, 5, 7, dtype=torch.double)).requires_grad_()
    tokens = torch.randint(7, (3, 5))
    found = Codes(7).loss(logits, tokens, smoothing)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens.flatten(), reduction="none", label_smoothing=smoothing
    ).view(3, 5)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(3, 5, dtype=torch.double)
    (ours,), (theirs,) = torch.autograd.grad(found, logits, weight), torch.autograd.grad(expected, logits, weight)
    torch.testing.assert_close(ours, theirs)
