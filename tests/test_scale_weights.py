"""``training.transformer.scale_weights``: what each scale counts in the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.config.sections import TransformerStageConfig
from nextscale.data import Batch
from nextscale.randomness import Draws
from nextscale.testing.helpers import random_pyramid
from nextscale.testing.tiny import grid_tokenizer, transformer_for
from nextscale.training.transformer_stage import TransformerObjective

LENGTHS = (1, 4, 9)


def of_scales(weights: Any) -> list[float]:
    """What the mean losses of scales of 1, 4 and 9 tokens count."""
    named = {None: [1.0, 4.0, 9.0], "equal": [1.0, 1.0, 1.0], "root": [1.0, 2.0, 3.0]}
    return list(weights) if isinstance(weights, tuple) else named[weights]


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([None, "equal", "root", (1.0, 0.0, 5.0)]), st.integers(0, 10**6))
def test_the_loss_is_the_weighted_mean_of_the_scales(weights: Any, seed: int) -> None:
    tokenizer = grid_tokenizer((6, 6))
    model, batch = transformer_for(tokenizer, ()), Batch(random_pyramid(tokenizer, 3, seed), {})
    objective = TransformerObjective(model, tokenizer, TransformerStageConfig(scale_weights=weights))
    with torch.no_grad():
        loss = float(objective(batch, 0, Draws(seed, 0, slice(0, 3), 3))[0])
        found = objective.validate(model, batch)
    counts = of_scales(weights)
    expected = sum(count * float(found[f"loss/scale{k}"]) for k, count in enumerate(counts)) / sum(counts)
    assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weights", [None, "equal", "root"])
def test_with_in_scale_steps_the_mean_over_sub_steps_is_the_same(weights: Any) -> None:
    """Without blocks the weights of all tokens are the same on average, whatever was revealed."""
    tokenizer = grid_tokenizer((6, 6), group_side=2)
    model = transformer_for(tokenizer, (), in_scale_steps=True)
    objective = TransformerObjective(model, tokenizer, TransformerStageConfig(scale_weights=weights))
    pyramid = random_pyramid(tokenizer, 2000, 0)
    draws = Draws(0, 0, slice(0, 2000), 2000)
    with torch.no_grad():
        revealed, counts = objective._reveal(pyramid, tokenizer.teacher_forcing(pyramid), draws)
    assert revealed is not None and counts is not None
    weight = objective._weights(pyramid, ~revealed[1]) * counts
    parts = [float(part.sum(1).mean()) for part in weight.split(LENGTHS, 1)]
    expected = of_scales(weights)
    assert [part / sum(parts) for part in parts] == pytest.approx([e / sum(expected) for e in expected], rel=0.1)
