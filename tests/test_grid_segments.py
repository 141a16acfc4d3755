"""The contract suite on segmented pyramids, and what they add: each segment begins anew."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nextscale.grid import Layout, Phi, ResidualPyramid, SegmentedTokenizer, VectorQuantizer
from nextscale.grid.phi import CONVOLUTIONS
from nextscale.grid.segments import Carry
from nextscale.testing import TokenizerContract
from nextscale.testing.helpers import random_pyramid, randomize
from nextscale.testing.tiny import transformer_for
from nextscale.tokens.pyramid import TokenPyramid

TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def segmented(
    shape: tuple[int, ...],
    lengths: tuple[int, ...],
    carry: Carry = "input",
    phi: str = "scale",
    codes: int | tuple[int, int] = 11,
) -> SegmentedTokenizer:
    axes = len(shape)
    quantizer = VectorQuantizer(codes, 4, num_scales=2)
    pyramid = ResidualPyramid(quantizer, Phi(axes, 4, phi, count=2, num_scales=2))  # type: ignore[arg-type]
    encoder = CONVOLUTIONS[axes](2, 4, 2, stride=2)
    decoder = TRANSPOSED[axes](4, 2, 2, stride=2)
    tokenizer = SegmentedTokenizer(
        encoder, decoder, pyramid, (1, 2), shape, [2] * axes, Layout(axes, causal=True), lengths, carry
    )
    randomize(tokenizer, 0)
    return tokenizer.eval()


class SegmentsContract(TokenizerContract):
    shape: tuple[int, ...]
    lengths: tuple[int, ...]
    examples, few_examples = 10, 5

    def build_tokenizers(self) -> list[SegmentedTokenizer]:
        kinds: list[tuple[Carry, str]] = [("input", "scale"), ("none", "partial"), ("state", "scale")]
        growing = segmented(self.shape, self.lengths, codes=(3, 11))
        grouped = segmented(self.shape, self.lengths)
        grouped.group_side = (1, 2)
        return [*(segmented(self.shape, self.lengths, carry, phi) for carry, phi in kinds), growing, grouped]

    def samples(self, tokenizer: SegmentedTokenizer, num_samples: int, seed: int) -> Tensor:
        return torch.randn(num_samples, 2, *self.shape, generator=torch.Generator().manual_seed(seed))

    def check_samples(self, samples: Tensor, num_samples: int) -> None:
        assert samples.shape[:2] == (num_samples, 2)


class TestSegments3D(SegmentsContract):
    examples = 50
    shape = (9, 4, 4)
    lengths = (1, 2)


class TestSegments2D(SegmentsContract):
    shape = (8, 6)
    lengths = (1, 1, 2)


def test_segments_and_where_they_lie():
    tokenizer = segmented((10, 4, 4), (1, 2))
    schedule = tokenizer.schedule()
    shapes = [scale.shape for scale in schedule.scales]
    assert shapes == [(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 2), (2, 1, 1), (2, 2, 2)]
    assert tokenizer.latent_shape(schedule) == (5, 2, 2)
    assert tokenizer.schedule_for((20, 4, 4)).scales[-1].shape == (1, 2, 2), "the last segment is cut"
    state = tokenizer.initial_state(1)
    assert tokenizer.scale_input(state, 0).features is None
    first, last = (tokenizer.scale_input(state, k).coordinates for k in (2, 5))
    assert first.tolist() == [[1.5, 1, 1], [2.5, 1, 1]]
    assert last[:, 0].tolist() == [3.5] * 4 + [4.5] * 4


def test_a_segment_begins_with_the_last_place_of_the_one_before_or_with_nothing():
    for carry in get_args(Carry):
        tokenizer = segmented((10, 4, 4), (1, 2), carry)
        states = tokenizer.states(random_pyramid(tokenizer, 2, 0))
        features = tokenizer.scale_input(states[4], 4).features
        assert features is not None
        last = states[4].f_hat[:, :, 2].mean((2, 3))
        expected = last[:, None].expand(-1, 2, -1) if carry != "none" else torch.zeros(2, 2, 4)
        torch.testing.assert_close(features, expected)


@given(st.integers(0, 2**32 - 1), st.integers(1, 2))
@settings(max_examples=50, deadline=None)
@torch.no_grad()
def test_tokens_of_a_segment_do_not_depend_on_later_segments(seed: int, number: int):
    """Neither encoding nor the kept tokens of a segment depend on later ones, so that segments can be drawn one after
    another."""
    tokenizer = segmented((10, 4, 4), (1, 2))
    x = torch.randn(1, 2, 10, 4, 4, generator=torch.Generator().manual_seed(seed))
    other = x.clone()
    start = (0, 2, 6)[number]
    other[:, :, start:] += 1
    one, two = tokenizer.encode(x), tokenizer.encode(other)
    before = one.schedule.offsets[2 * number]
    assert torch.equal(one.tokens[:, :before], two.tokens[:, :before])
    keep = torch.zeros(1, 10, 4, 4, dtype=torch.bool)
    keep[:, :start] = True
    kept = tokenizer.keep_tokens(keep)
    assert kept[:, :before].all() and not kept[:, before:].any()


def test_a_matrix_lets_a_segment_see_only_the_one_before():
    """Each clip sees itself and the clip before it, so changing the first segment changes no logit of the third."""
    tokenizer = segmented((10, 4, 4), (1, 2), carry="none")
    rule = [[j <= k and k // 2 - j // 2 <= 1 for j in range(6)] for k in range(6)]
    # One block only: several blocks would pass information on from each segment to the next.
    transformer = transformer_for(tokenizer, attention=rule, positions="rotary", depth=1)
    pyramid = random_pyramid(tokenizer, 1, 0)
    changed = pyramid.tokens.clone()
    changed[:, : pyramid.schedule.offsets[2]] = (changed[:, : pyramid.schedule.offsets[2]] + 1) % 11
    with torch.no_grad():
        logits = [
            transformer(tokenizer.teacher_forcing(p), transformer.conditioner({}, 1))
            for p in (pyramid, TokenPyramid(changed, pyramid.schedule))
        ]
    different = (logits[0] != logits[1]).any(-1)[0]
    second, third = pyramid.schedule.offsets[2], pyramid.schedule.offsets[4]
    assert different[second:third].any() and not different[third:].any()


def test_stage_one_quantizes_each_segment():
    tokenizer = segmented((10, 4, 4), (1, 2)).train()
    x = torch.randn(2, 2, 10, 4, 4)
    back, quantized = tokenizer.quantize(x, torch.tensor([1, 2]))
    assert back.shape == x.shape and quantized.counts.shape == (2, 11)
    assert quantized.counts.sum() == 2 * tokenizer.schedule().length
    assert len(quantized.residuals) == len(quantized.codes) == 2 * tokenizer.schedule().length
    with pytest.raises(ValueError, match="one convolution for each"):
        tokenizer.pyramid.part(torch.zeros(1, 1, 4), 0, tokenizer.schedule())
