"""What the tokens of a sample cost: exact where a scale is drawn at once, summed over real tokens alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_toy_contracts import Sets, SetState, SetStem, SetTokenizer
from torch import nn

from nextscale.config.sections import TransformerStageConfig
from nextscale.data import Batch
from nextscale.grid import GridTokenizer, Phi, ResidualPyramid, VectorQuantizer
from nextscale.testing.tiny import transformer_for
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import TokenPyramid
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.training.transformer_stage import TransformerObjective
from nextscale.transformer import ScaleTransformer

CODES, SCALES = 3, (1, 2)


def small_grid() -> GridTokenizer:
    pyramid = ResidualPyramid(VectorQuantizer(CODES, 2, num_scales=2), Phi(1, 2, "partial", count=1, num_scales=2))
    return GridTokenizer(nn.Conv1d(1, 2, 2, 2), nn.ConvTranspose1d(2, 1, 2, 2), pyramid, SCALES, (4,), [2]).eval()


def costs(model: ScaleTransformer, tokenizer: MultiscaleTokenizer, samples: Any) -> dict[str, float]:
    objective = TransformerObjective(model, tokenizer, TransformerStageConfig())
    with torch.no_grad():
        found = objective.validate(model, Batch(samples, {}))
    return {key: float(value) for key, value in found.items() if key.startswith("nats")}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_the_probabilities_of_all_token_pyramids_add_up_to_one(seed: int, in_scale_steps: bool) -> None:
    tokenizer = small_grid()
    model = transformer_for(tokenizer, conditions=(), seed=seed, in_scale_steps=in_scale_steps)
    total = 0.0
    for tokens in itertools.product(range(CODES), repeat=sum(SCALES)):
        found = costs(model, tokenizer, TokenPyramid(torch.tensor([tokens]), tokenizer.schedule()))
        assert set(found) == {"nats_per_sample"}
        total += math.exp(-found["nats_per_sample"])
    assert total == pytest.approx(1, abs=1e-4)


class Grouped(SetTokenizer):
    """Numbers are drawn one after another, or each in a group of its own."""

    def __init__(self, one_by_one: bool) -> None:
        super().__init__()
        self.one_by_one = one_by_one

    def scale_input(self, state: SetState, k: int) -> ScaleInput:
        inputs = super().scale_input(state, k)
        groups = torch.zeros(inputs.length) if self.one_by_one else torch.arange(inputs.length)
        return replace(inputs, groups=groups.long().expand(inputs.num_samples, -1))


def stepwise(tokenizer: SetTokenizer, in_scale_steps: bool) -> ScaleTransformer:
    return transformer_for(
        tokenizer, (), stem=SetStem(16), in_scale_steps=in_scale_steps, positions="rotary", scale_embedding=False
    )


def sets(sizes: list[int], seed: int) -> Sets:
    values = torch.randint(16, (len(sizes), max(sizes)), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    return Sets(values * mask, mask)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 10**6))
def test_the_cost_of_samples_of_any_length_is_the_mean_of_their_costs(sizes: list[int], seed: int) -> None:
    tokenizer = SetTokenizer()
    model, joined = stepwise(tokenizer, False), sets(sizes, seed)
    alone = [
        costs(model, tokenizer, Sets(values[mask][None], mask[mask][None]))["nats_per_sample"]
        for values, mask in zip(joined.values, joined.mask, strict=True)
    ]
    assert costs(model, tokenizer, joined)["nats_per_sample"] == pytest.approx(sum(alone) / len(alone), rel=1e-4)


def test_tokens_drawn_one_after_another_have_a_bound() -> None:
    joined = sets([2, 5, 3], 0)
    found: list[float] = []
    for one_by_one in (True, False):
        tokenizer = Grouped(one_by_one)
        (cost,) = costs(stepwise(tokenizer, True), tokenizer, joined).items()
        assert cost[0] == "nats_per_sample_bound" and math.isfinite(cost[1])
        assert set(costs(stepwise(tokenizer, False), tokenizer, joined)) == {"nats_per_sample"}
        found.append(cost[1])
    # Groups of one token are drawn all at once, where the bound is exact.
    tokenizer = SetTokenizer()
    model, pyramid = stepwise(tokenizer, True), tokenizer.encode(joined)
    assert pyramid.mask is not None
    revealed = pyramid.tokens, torch.zeros_like(pyramid.mask)
    with torch.no_grad():
        logits = model(tokenizer.teacher_forcing(pyramid), model.conditioner({}, len(pyramid)), revealed=revealed)
    log_probs = logits.log_softmax(-1).gather(-1, pyramid.tokens[..., None])[..., 0]
    exact = -float(log_probs[pyramid.mask].sum()) / len(pyramid)
    assert found[1] == pytest.approx(exact, rel=1e-5) and found[0] != pytest.approx(exact, rel=1e-3)
