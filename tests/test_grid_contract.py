"""The contract suite on residual pyramids over grids of one, two and three axes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from nextscale.grid import GridTokenizer
from nextscale.testing import TokenizerContract, checks, strategies
from nextscale.testing.helpers import random_pyramid
from nextscale.testing.tiny import grid_tokenizer, transformer_for
from nextscale.tokens.pyramid import Schedule


class GridContract(TokenizerContract):
    examples, few_examples = 15, 5
    sample_shape: tuple[int, ...]

    def build_tokenizers(self) -> list[GridTokenizer]:
        variants = list(product(("none", "shared", "partial", "scale"), ("cubic", "linear")))
        cosine = grid_tokenizer(self.sample_shape, distance="cosine")
        growing = grid_tokenizer(self.sample_shape, codes=(3, 7, 11))
        fewer = grid_tokenizer(self.sample_shape, sides=(1, 3, 3), codes=(4, 11, 5))
        anew = grid_tokenizer(self.sample_shape, target="features", codes=(3, 7, 11))
        cheap = [grid_tokenizer(self.sample_shape, price=price, codes=(3, 7, 11)) for price in (0.05, 0.5)]
        made = [grid_tokenizer(self.sample_shape, phi=phi, upsample=mode) for phi, mode in variants]
        grouped = grid_tokenizer(self.sample_shape, group_side=2)
        partly = grid_tokenizer(self.sample_shape, codes=(3, 7, 11), group_side=(1, 2, 3))
        return [*made, cosine, growing, fewer, anew, *cheap, grouped, partly]

    def samples(self, tokenizer: GridTokenizer, num_samples: int, seed: int) -> Tensor:
        return torch.randn(num_samples, 2, *self.sample_shape, generator=torch.Generator().manual_seed(seed))

    def check_samples(self, samples: Tensor, num_samples: int) -> None:
        assert samples.shape[:2] == (num_samples, 2)


class TestGrid1D(GridContract):
    sample_shape = (7,)


class TestGrid2D(GridContract):
    examples, few_examples = 50, 15
    sample_shape = (6, 5)


class TestGrid3D(GridContract):
    sample_shape = (6, 4, 3)


@given(strategies.grid_schedules())
@settings(max_examples=50, deadline=None)
def test_grid_schedules(schedule: Schedule):
    checks.check_schedule(schedule, grid=True)


@given(strategies.set_schedules())
@settings(max_examples=50, deadline=None)
def test_set_schedules(schedule: Schedule):
    checks.check_schedule(schedule)


@pytest.mark.parametrize("side", range(1, 9))
def test_any_sample_size_is_restored(side: int):
    """Samples whose size is not a multiple of the factor are padded, then cropped again."""
    samples = torch.randn(2, 2, side, 9 - side, generator=torch.Generator().manual_seed(side))
    checks.check_stage_one(grid_tokenizer((side, 9 - side)), samples)


@pytest.mark.parametrize("attention", ["full", "markov"])
def test_finer_scales_do_depend_on_coarser_tokens(attention: str):
    """Otherwise the causality check would prove nothing."""
    tokenizer = grid_tokenizer((6, 6))
    transformer = transformer_for(tokenizer, attention=attention)
    pyramid = random_pyramid(tokenizer, 2, 0)
    changed = random_pyramid(tokenizer, 2, 1, like=pyramid, changed=1)
    with torch.no_grad():
        logits = [transformer(tokenizer.teacher_forcing(p), transformer.conditioner({}, 2)) for p in (pyramid, changed)]
    difference = (logits[0] - logits[1]).abs().amax((0, 2))
    assert (difference[:5] == 0).all() and (difference[5:] > 0.01).all()
    assert logits[0].std() > 0.2
