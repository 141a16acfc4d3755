"""Grid tokenizers whose scales use fewer codes, or describe the sample anew."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.config.grid import ConvolutionalConfig
from nextscale.errors import ConfigError
from nextscale.grid import VectorQuantizer, build_grid_tokenizer
from nextscale.grid.resample import resample
from nextscale.testing.tiny import grid_tokenizer

SIZES = st.lists(st.integers(1, 11), min_size=3, max_size=3)
SEEDS = st.integers(0, 2**32)


def pictures(seed: int, number: int = 3) -> torch.Tensor:
    return torch.randn(number, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


@given(SIZES, st.sampled_from(["residual", "features"]), SEEDS)
@settings(max_examples=30, deadline=None)
def test_a_scale_uses_its_first_codes(sizes: list[int], target: str, seed: int) -> None:
    tokenizer = grid_tokenizer((6, 6), codes=sizes, target=target)
    assert tokenizer.token_space.vocabulary == max(sizes)
    wrong = torch.Generator().manual_seed(seed)

    def replaced(tokens: torch.Tensor, k: int) -> torch.Tensor:
        return torch.randint(max(sizes), tokens.shape, generator=wrong)

    for pyramid in (tokenizer.encode(pictures(seed)), *tokenizer.encode_after(pictures(seed), replaced)):
        for k, size in enumerate(sizes):
            assert int(pyramid.scale(k).max()) < size
            legal = tokenizer.scale_input(tokenizer.states(pyramid)[k], k).legal
            if size == max(sizes):
                assert legal is None
            else:
                assert legal is not None and legal.untyped_storage().nbytes() == max(sizes), "a view"
                assert legal.shape == (*pyramid.scale(k).shape, max(sizes))
                assert torch.equal(legal.sum(-1), torch.full_like(pyramid.scale(k), size))


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_every_scale_describes_the_features(seed: int) -> None:
    """Tokens are nearest to the pooled features, whatever the coarser ones are; the finest alone are decoded."""
    tokenizer = grid_tokenizer((6, 6), target="features")
    with torch.no_grad():
        features, pyramid = tokenizer.features(pictures(seed)), tokenizer.encode(pictures(seed))
        for k, scale in enumerate(pyramid.schedule.scales):
            pooled = resample(features, scale.shape, "area").flatten(2).mT
            distances = torch.cdist(pooled, tokenizer.codebook[None].expand(3, -1, -1))
            chosen = distances.gather(-1, pyramid.scale(k)[..., None])[..., 0]
            torch.testing.assert_close(chosen, distances.amin(-1), atol=1e-4, rtol=1e-4)
        other = pyramid.tokens.clone()
        other[:, : pyramid.schedule.offsets[2]] = 0
        same = type(pyramid)(other, pyramid.schedule)
        assert torch.equal(tokenizer.decode_tokens(same), tokenizer.decode_tokens(pyramid))
        after = tokenizer.encode_after(pictures(seed), lambda tokens, k: torch.zeros_like(tokens))[0]
        assert torch.equal(after.tokens, pyramid.tokens)


def test_dropped_scales_leave_the_last_one_that_is_kept() -> None:
    pyramid = grid_tokenizer((6, 6), target="features").pyramid
    features = torch.randn(3, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    schedule = grid_tokenizer((6, 6)).schedule()
    kept = torch.tensor([1, 2, 3])
    dropped = pyramid.quantize(features, schedule, kept)
    for i, number in enumerate(kept.tolist()):
        vectors = pyramid.quantizer.lookup(dropped.pyramid.scale(number - 1)[i : i + 1])
        torch.testing.assert_close(dropped.f_hat[i], pyramid.part(vectors, number - 1, schedule)[0])
    whole = pyramid.quantize(features, schedule)
    torch.testing.assert_close(pyramid.quantize(features, schedule, torch.full((3,), 3)).loss, whole.loss)


def test_features_commit_to_a_coarse_scale_on_its_own_grid() -> None:
    """Else, features would be pulled towards their own mean."""
    tokenizer = grid_tokenizer((6, 6), target="features", sides=(1, 3), phi="none")
    pyramid, schedule = tokenizer.pyramid, tokenizer.schedule()
    features = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    first = pyramid.quantize(features, schedule, torch.tensor([1, 1])).loss
    (gradient,) = torch.autograd.grad(first, features)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(gradient, gradient[:, :, :1, :1].expand_as(gradient), msg="only the mean is pulled")


def test_codes_of_few_scales_get_a_fair_share() -> None:
    """A code that only one of two scales uses is not dead because the other one cannot use it."""
    quantizer = VectorQuantizer((2, 4), 3, num_scales=2)
    quantizer.record(torch.tensor([[10.0, 10, 0, 0], [5, 5, 5, 5]]))
    vectors = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    assert quantizer.revive(vectors, 0.9, torch.Generator()) == 0
    quantizer.record(torch.tensor([[10.0, 10, 0, 0], [5, 5, 5, 0]]), decay=0.0)
    assert quantizer.revive(vectors, 0.9, torch.Generator()) == 1


@pytest.mark.parametrize(
    ("quantizer", "order", "scales", "segments", "message"),
    [
        ({"codes": [8, 8]}, "scales", (1, 2, 4), None, "tokenizer.quantizer.codes has 2 numbers for 3 scales"),
        ({"target": "features"}, "raster", (1, 4), None, "use order=scales, or target=residual"),
        ({"target": "features"}, "scales", (1, 4, 4), None, "a scale as fine as the one before it"),
        ({"target": "features"}, "scales", ((1, 1), (1, 4)), (1, 3), "segments"),
    ],
)
def test_what_makes_no_sense_is_one_line(quantizer, order, scales, segments, message) -> None:
    config = ConvolutionalConfig(
        width=8, multipliers=(1,), blocks=1, attention=False, order=order, quantizer={"phi": "none", **quantizer}
    )
    with pytest.raises(ConfigError, match=message) as error:
        build_grid_tokenizer(config, channels=1, shape=(4, 4), scales=scales, segments=segments)
    assert "\n" not in str(error.value)
