from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.grid import Phi, ResidualPyramid, VectorQuantizer
from nextscale.grid.phi import nearest_tick
from nextscale.tokens.pyramid import Schedule


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def quantizer(num_codes: int = 10, dim: int = 3, seed: int = 0, **settings) -> VectorQuantizer:
    made = VectorQuantizer(num_codes, dim, **settings)
    made.codebook.data.normal_(generator=torch.Generator().manual_seed(seed))
    return made


def vectors(count: int, dim: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_the_nearest_code_is_the_nearest(count, num_codes, seed):
    made, given_RC = quantizer(num_codes, seed=seed), vectors(count, seed=seed + 1)
    distances = (given_RC[:, None] - made.codebook[None]).square().sum(-1)
    chosen = distances.gather(1, made.nearest(given_RC)[:, None])[:, 0]
    torch.testing.assert_close(chosen, distances.amin(1), atol=1e-4, rtol=1e-4)


def test_cosine_compares_directions_alone():
    made, given_RC = quantizer(distance="cosine"), vectors(50)
    expected = F.cosine_similarity(given_RC[:, None], made.codebook[None], dim=-1).argmax(-1)
    assert torch.equal(made.nearest(given_RC), expected)
    assert torch.equal(made.nearest(given_RC * torch.rand(50, 1).add(0.1)), expected)
    made.codebook.data *= torch.arange(1.0, 11)[:, None]
    assert torch.equal(made.nearest(given_RC), expected)
    assert torch.equal(made.lookup(expected), made.codebook[expected])  # the raw code comes out


def test_ema_follows_the_mean_of_its_vectors():
    made = quantizer(4, 2, update="ema", ema_decay=0.9)
    assert not list(made.parameters())
    unused = made.codebook[3].clone()
    group = torch.tensor([[1.0, 2.0], [3.0, 4.0], [-1.0, 0.0]])
    tokens = torch.tensor([0, 0, 1])
    made.update_codebook(group, tokens)
    # From empty averages, the first step lands on the means.
    torch.testing.assert_close(made.codebook[:2], torch.tensor([[2.0, 3.0], [-1.0, 0.0]]))
    assert torch.equal(made.codebook[3], unused)
    made.update_codebook(group + 1, tokens)
    torch.testing.assert_close(made.ema_count, torch.tensor([0.38, 0.19, 0, 0]))
    mean = (0.09 * torch.tensor([4.0, 6.0]) + 0.1 * torch.tensor([6.0, 8.0])) / 0.38
    torch.testing.assert_close(made.codebook[0], mean)
    for _ in range(100):
        made.update_codebook(group + 5, tokens)
    torch.testing.assert_close(made.codebook[0], torch.tensor([7.0, 8.0]), atol=1e-3, rtol=0)


def test_usage_is_a_moving_share_per_scale():
    made = quantizer(4, num_scales=2)
    made.record(torch.tensor([[3.0, 1, 0, 0], [0, 0, 8, 8]]))
    torch.testing.assert_close(made.usage_KV, torch.tensor([[0.75, 0.25, 0, 0], [0, 0, 0.5, 0.5]]))
    made.record(torch.tensor([[0.0, 0, 0, 2], [0, 0, 0, 1]]), decay=0.5)
    torch.testing.assert_close(made.usage_KV, torch.tensor([[0.375, 0.125, 0, 0.5], [0, 0, 0.25, 0.75]]))


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_dead_codes_move_onto_vectors(update):
    made = quantizer(4, update=update)
    made.record(torch.tensor([[50.0, 49, 1, 0]]))
    before, given_RC = made.codebook.detach().clone(), vectors(20)
    assert made.revive(given_RC, 0.1, torch.Generator().manual_seed(0)) == 2
    after = made.codebook.detach()
    assert torch.equal(after[:2], before[:2])
    onto = [int((given_RC == code).all(1).nonzero()) for code in after[2:]]
    assert len(set(onto)) == 2
    assert torch.equal(made.nearest(given_RC[onto]), torch.tensor([2, 3]))
    assert made.revive(given_RC, 0.1, torch.Generator().manual_seed(0)) == 0  # revived codes get a fair trial
    if update == "ema":  # the moving averages agree with the new place
        torch.testing.assert_close((made.ema_sum / made.ema_count[:, None])[2:], after[2:])


def test_the_deadest_codes_come_first_if_vectors_are_few():
    made = quantizer(4)
    made.record(torch.tensor([[900.0, 3, 0, 2]]))
    before = made.codebook.detach().clone()
    assert made.revive(vectors(1), 0.1, torch.Generator()) == 1
    changed = (made.codebook.detach() != before).any(1).tolist()
    assert changed == [False, False, True, False]


SCHEDULE = Schedule.of([(1, 1), (2, 2), (4, 4)])


def residual_pyramid(**settings) -> ResidualPyramid:
    return ResidualPyramid(quantizer(16, num_scales=3, **settings), Phi(2, 3, num_scales=3))


def test_dropped_scales_add_nothing():
    """If sample i keeps its first n scales, it is reconstructed from those alone, and only they count in the loss."""
    pyramid, features = residual_pyramid().eval(), torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    kept = torch.tensor([1, 2, 3])
    dropped = pyramid.quantize(features, SCHEDULE, kept)
    tokens = pyramid.tokens(features, SCHEDULE)
    losses = []
    for i, number in enumerate(kept.tolist()):
        total = torch.zeros(1, 3, 4, 4)
        for k in range(number):
            assert torch.equal(dropped.pyramid.scale(k)[i], tokens.scale(k)[i])
            total = total + pyramid.part(pyramid.quantizer.lookup(tokens.scale(k)[i : i + 1]), k, SCHEDULE)
            losses.append(1.25 * F.mse_loss(total[0], features[i]) / 3)
        torch.testing.assert_close(dropped.f_hat[i], total[0])
    torch.testing.assert_close(dropped.loss, torch.stack(losses).sum() / 3)
    whole = pyramid.quantize(features, SCHEDULE)
    torch.testing.assert_close(pyramid.quantize(features, SCHEDULE, torch.full((3,), 3)).loss, whole.loss)


def test_a_scale_may_have_its_own_commitment():
    """Each scale adds its commitment times the mean squared error after it, and that error once more for codes."""
    features = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pyramid, states = residual_pyramid().eval(), [torch.zeros(2, 3, 4, 4)]
    tokens = pyramid.tokens(features, SCHEDULE)
    for k in range(3):
        states.append(states[-1] + pyramid.part(pyramid.quantizer.lookup(tokens.scale(k)), k, SCHEDULE))
    errors = torch.stack([F.mse_loss(state, features) for state in states[1:]])
    for commitment in ((0.5, 0.0, 2.0), (0.25, 0.25, 0.25), 0.25):
        pyramid.commitment = commitment
        expected = ((1 + torch.tensor(commitment)) * errors).mean()
        torch.testing.assert_close(pyramid.quantize(features, SCHEDULE).loss, expected)


def test_usage_is_recorded_in_training_only():
    pyramid = residual_pyramid()
    pyramid.eval().quantize(torch.randn(2, 3, 4, 4), SCHEDULE)
    assert not pyramid.quantizer.usage_KV.any()
    quantized = pyramid.train().quantize(torch.randn(2, 3, 4, 4), SCHEDULE)
    torch.testing.assert_close(pyramid.quantizer.usage_KV.sum(1), torch.ones(3))
    for k in range(3):
        used = torch.bincount(quantized.pyramid.scale(k).flatten(), minlength=16) > 0
        assert torch.equal(pyramid.quantizer.usage_KV[k] > 0, used)


def test_published_phi_ticks():
    assert [nearest_tick(k, 10, 4) for k in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert nearest_tick(0, 1, 4) == 0


def test_phi_per_scale_refuses_other_schedules():
    with pytest.raises(ValueError, match="one convolution for each of 3 scales, not 2"):
        Phi(1, 2, "scale", num_scales=3)(torch.zeros(1, 2, 4), 0, 2)
