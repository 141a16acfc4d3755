"""In-scale steps by groups: every token counts once on average, shares are spread evenly, and padding changes
nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextscale.config.sections import SamplingConfig
from nextscale.randomness import Draws
from nextscale.sampling.reveal import reveal_groups
from nextscale.sampling.scale import ScaleSettings, draw_scale
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.space import Codes


def revealed(groups_BL: Tensor, mask_BL: Tensor, lengths: list[int], step: int) -> tuple[Tensor, Tensor]:
    schedule = Schedule.of([(length,) for length in lengths])
    pyramid = TokenPyramid(torch.zeros_like(groups_BL), schedule, mask_BL)
    count = len(groups_BL)
    return reveal_groups(pyramid, groups_BL, Draws(0, step, slice(0, count), count, groups_BL.device))


def test_every_token_counts_once_on_average() -> None:
    """This holds for groups of any size. The mean of 4,000 samples is within five standard errors of one."""
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 2, 0, 1, 1, 1]).expand(4000, -1)
    known, counts = revealed(groups, torch.ones_like(groups, dtype=torch.bool), [7, 4], 0)
    assert not bool((counts[known] != 0).any()) and bool((counts[~known] >= 1).all())
    error = counts.std(0) / 4000**0.5
    assert bool(((counts.mean(0) - 1).abs() < 5 * error).all()), counts.mean(0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_a_group_has_revealed_one_token_per_sub_step_so_far(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, 3, (5, 12), generator=generator)
    mask = torch.rand(5, 12, generator=generator) < 0.8
    known, _ = revealed(groups, mask, [8, 4], seed)
    assert not bool((known & ~mask).any())
    for b in range(5):
        for span in (slice(0, 8), slice(8, 12)):
            sizes = torch.bincount(groups[b, span][mask[b, span]], minlength=3)
            shown = torch.bincount(groups[b, span][known[b, span]], minlength=3)
            step = int(shown.max())
            assert torch.equal(shown, sizes.clamp_max(step)) and step < max(1, int(sizes.max()))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.none() | st.integers(1, 12))
def test_groups_take_as_many_sub_steps_as_allowed(seed: int, most: int | None) -> None:
    """Each sub-step draws as few tokens of a group as the limit allows, and every token is drawn once."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, 3, (4, 12), generator=generator)
    mask = torch.rand(4, 12, generator=generator) < 0.8
    mask[:, 0] = True
    seen: list[Tensor] = []

    def predict(revealed: tuple[Tensor, Tensor] | None) -> Tensor:
        assert revealed is not None
        seen.append(revealed[1].clone())
        return torch.zeros(4, 12, 5)

    model: Any = SimpleNamespace(token_space=Codes(5), config=SimpleNamespace(in_scale_steps=True))
    inputs = ScaleInput(4, None, torch.zeros(12, 1), torch.zeros(12, dtype=torch.long), mask, groups=groups)
    how = ScaleSettings.at(SamplingConfig(reveal="groups", group_steps=most), 0, "")
    draw_scale(predict, model, inputs, 4, how, [torch.Generator().manual_seed(i) for i in range(4)], None)
    sizes = torch.stack([torch.bincount(one[real], minlength=3) for one, real in zip(groups, mask, strict=True)])
    largest = sizes.amax(1)
    at_once = torch.ones_like(largest) if most is None else (largest / most).ceil().long()
    assert len(seen) == int((largest / at_once).ceil().max()) and (most is None or len(seen) <= most)
    for step, known in enumerate(seen):
        shown = torch.stack([torch.bincount(one[real], minlength=3) for one, real in zip(groups, known, strict=True)])
        assert torch.equal(shown, torch.minimum(sizes, step * at_once[:, None])) and not bool((known & ~mask).any())


@pytest.mark.parametrize("others", [[], [1], [1, 1, 1, 1], [7], [1, 7]], ids=str)
def test_shares_of_a_samples_scales_are_spread_evenly(others: list[int]) -> None:
    """Of 40 scales of ten tokens each, every number of known tokens comes up four times, give or take three. This holds
    whatever scales lie between them: scales of one token, which leave no choice, or of seven."""
    lengths = [10, *others] * 40
    groups = torch.zeros(50, sum(lengths), dtype=torch.long)
    known, _ = revealed(groups, torch.ones_like(groups, dtype=torch.bool), lengths, 0)
    for row in known.view(50, 40, 10 + sum(others))[..., :10].sum(2):
        times = torch.bincount(row, minlength=10)
        assert int(times.min()) >= 1 and int(times.max()) <= 7


def test_padding_and_other_samples_change_nothing() -> None:
    groups = torch.randint(0, 3, (2, 6), generator=torch.Generator().manual_seed(0))
    alone = revealed(groups, torch.ones_like(groups, dtype=torch.bool), [6], 3)
    wide = torch.cat([groups, torch.full((2, 3), 2)], 1)
    mask = (torch.arange(9) < 6).expand(2, -1)
    padded = revealed(wide, mask, [9], 3)
    assert torch.equal(padded[0][:, :6], alone[0]) and torch.equal(padded[1][:, :6], alone[1])
    assert not padded[0][:, 6:].any() and not padded[1][:, 6:].any()
