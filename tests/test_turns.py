"""In-scale steps in a fixed order: blocks on grids, training and sampling alike, and an exact likelihood."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nextscale.config.sections import SamplingConfig, TransformerConfig, TransformerStageConfig
from nextscale.data import Batch
from nextscale.errors import ConfigError
from nextscale.grid import GridTokenizer, Phi, ResidualPyramid, VectorQuantizer
from nextscale.grid.turns import block_ranks, block_turns
from nextscale.randomness import Draws
from nextscale.sampling import generate as generation
from nextscale.sampling.generate import Generation, generate
from nextscale.sampling.turns import logits_in_turns, reveal_turns
from nextscale.testing.helpers import random_pyramid
from nextscale.testing.tiny import LABEL, grid_tokenizer, transformer_for
from nextscale.tokens.pyramid import TokenPyramid
from nextscale.tokens.space import Bits
from nextscale.tokens.stem import Stem
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.training.transformer_stage import TransformerObjective
from nextscale.transformer import ScaleTransformer

CPU, LABELS = torch.device("cpu"), {"label": torch.arange(3)}
KNOWN = ["embedding", "codes"]


def grouped(known: str = "codes", side: Any = 2, **how: Any) -> tuple[GridTokenizer, ScaleTransformer]:
    tokenizer = grid_tokenizer((6, 6), group_side=side)
    return tokenizer, transformer_for(tokenizer, in_scale_steps=True, known_tokens=known, **how)


def predicted(tokenizer: MultiscaleTokenizer, model: ScaleTransformer, pyramid: TokenPyramid) -> Tensor:
    """B L V: the logits from which the tokens of ``pyramid`` would be drawn."""
    cond_BD = model.conditioner(LABELS, len(pyramid))
    with torch.no_grad():
        return torch.cat(logits_in_turns(model, pyramid, tokenizer.teacher_forcing(pyramid), cond_BD), 1)


# Blocks.


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(1, 4))
def test_every_block_draws_each_of_its_cells_once(shape: list[int], side: int) -> None:
    turns, number = block_turns(tuple(shape), side, CPU)
    grid = turns.view(*shape)
    assert number == math.prod(min(side, size) for size in shape)
    starts = itertools.product(*[range(0, size, side) for size in shape])
    for start in starts:
        block = grid[tuple(slice(first, first + side) for first in start)].flatten().tolist()
        assert len(set(block)) == len(block)
    first = grid[tuple(slice(0, side) for _ in shape)]
    assert sorted(first.flatten().tolist()) == list(range(number)) and int(grid.flatten()[0]) == 0


@pytest.mark.parametrize("sides", [(2, 2), (3, 3), (2, 2, 2), (4,), (1, 3)])
def test_a_cell_is_as_far_as_can_be_from_those_before_it(sides: Sequence[int]) -> None:
    ranks = block_ranks(sides)
    cells = np.array(sorted(np.ndindex(*sides), key=lambda cell: ranks[cell]))

    def distance(cell: np.ndarray, others: np.ndarray) -> int:
        apart = np.abs(others - cell)
        return int(np.square(np.minimum(apart, np.array(sides) - apart)).sum(1).min())

    for i in range(1, len(cells)):
        assert distance(cells[i], cells[:i]) == max(distance(cell, cells[:i]) for cell in cells[i:])


# Training.


def test_every_token_counts_once_on_average() -> None:
    """And what is known is what the sub-steps before have drawn, in every scale."""
    tokenizer = grid_tokenizer((6, 6), group_side=2)
    pyramid = random_pyramid(tokenizer, 4000, 0)
    inputs = tokenizer.teacher_forcing(pyramid)
    known, weight = reveal_turns(pyramid, inputs, Draws(0, 0, slice(0, 4000), 4000))
    error = weight.std(0) / 4000**0.5
    assert bool(((weight.mean(0) - 1).abs() <= 5 * error + 1e-6).all()), weight.mean(0)
    assert torch.equal(weight > 0, ~known) and inputs.turns is not None
    for k in range(len(pyramid.schedule)):
        span = pyramid.schedule.span(k)
        shown = known[:, span].sum(1, keepdim=True)
        before = (inputs.turns[span] < inputs.turns[span][:, None]).sum(1)  # of each token, how many come before it
        assert torch.equal(known[:, span], before.expand(4000, -1) < shown)


@pytest.mark.parametrize("known", KNOWN)
def test_the_loss_reaches_every_weight(known: str) -> None:
    tokenizer, model = grouped(known)
    objective = TransformerObjective(model, tokenizer, TransformerStageConfig(condition_drop=0))
    draws = Draws(0, 1, slice(0, 3), 3)
    objective(Batch(random_pyramid(tokenizer, 3, 0), LABELS), 0, draws)[0].backward()
    without = {name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()}
    assert without <= {"conditioner.null.label"}


# Likelihood.


def line_tokenizer(side: int) -> GridTokenizer:
    """Scales of one and three tokens, each one of three codes."""
    pyramid = ResidualPyramid(VectorQuantizer(3, 2, num_scales=2), Phi(1, 2, "partial", count=1, num_scales=2))
    tokenizer = GridTokenizer(nn.Conv1d(1, 2, 2, 2), nn.ConvTranspose1d(2, 1, 2, 2), pyramid, (1, 3), (6,), [2])
    tokenizer.group_side = side
    return tokenizer.eval()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from(KNOWN))
def test_the_probabilities_of_all_token_pyramids_add_up_to_one(seed: int, side: int, known: str) -> None:
    tokenizer = line_tokenizer(side)
    model = transformer_for(tokenizer, (), seed=seed, in_scale_steps=True, known_tokens=known)
    every = TokenPyramid(torch.tensor(list(itertools.product(range(3), repeat=4))), tokenizer.schedule())
    log_probs = predicted(tokenizer, model, every).log_softmax(-1).gather(-1, every.tokens[..., None])[..., 0].sum(1)
    assert float(log_probs.exp().sum()) == pytest.approx(1, abs=1e-4)
    objective = TransformerObjective(model, tokenizer, TransformerStageConfig())
    with torch.no_grad():
        found = objective.validate(model, Batch(every, {}))
    assert float(found["nats_per_sample"]) == pytest.approx(-float(log_probs.mean()), rel=1e-4)
    assert "nats_per_sample_bound" not in found


def recorded(monkeypatch: pytest.MonkeyPatch, *model: Any, **how: Any) -> tuple[Generation, Tensor]:
    """A draw, and the logits from which each token was drawn."""
    seen, own = [], generation.draw_in_turns

    def watched(*arguments: Any) -> tuple[Tensor, Tensor]:
        tokens, logits = own(*arguments)
        seen.append(logits)
        return tokens, logits

    monkeypatch.setattr(generation, "draw_in_turns", watched)
    drawn = generate(*model, 3, LABELS, SamplingConfig(reveal="groups", guidance=0), torch.Generator(), **how)
    monkeypatch.setattr(generation, "draw_in_turns", own)
    return drawn, torch.cat(seen, 1)


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_tokens_are_drawn_from_what_is_evaluated(known: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an edit, too: a kept token is shown after its turn, as in training."""
    tokenizer, model = grouped(known)
    before = random_pyramid(tokenizer, 3, 5)
    keep = torch.rand(before.tokens.shape, generator=torch.Generator().manual_seed(0)) < share
    drawn, logits = recorded(monkeypatch, tokenizer, model, known=before, keep=keep)
    pyramid = drawn.pyramid(before.schedule)
    assert torch.equal(pyramid.tokens[keep], before.tokens[keep])
    torch.testing.assert_close(logits, predicted(tokenizer, model, pyramid), rtol=0, atol=1e-4)


@pytest.mark.parametrize("known", KNOWN)
def test_a_token_is_seen_by_later_turns_and_finer_scales_alone(known: str) -> None:
    tokenizer, model = grouped(known)
    pyramid, inputs = random_pyramid(tokenizer, 3, 1), tokenizer.teacher_forcing(random_pyramid(tokenizer, 3, 1))
    assert inputs.turns is not None
    span, schedule = pyramid.schedule.span(2), pyramid.schedule
    logits = predicted(tokenizer, model, pyramid)
    for turn in range(4):
        changed = TokenPyramid(pyramid.tokens.clone(), schedule)
        here = torch.arange(schedule.length)[span][inputs.turns[span] == turn]
        changed.tokens[:, here] = (changed.tokens[:, here] + 1) % 11
        moved = (predicted(tokenizer, model, changed) - logits).abs().amax((0, 2))
        later = torch.zeros(schedule.length, dtype=torch.bool)
        later[span] = inputs.turns[span] > turn
        assert bool((moved[later] > 1e-3).all()) and bool((moved[~later] < 1e-5).all())


# Sampling.


@pytest.mark.parametrize(
    ("side", "most", "expected"),
    [(2, None, [1, 4, 4]), (2, 2, [1, 2, 2]), (2, (1, 4, 1), [1, 4, 1]), ((1, 1, 3), None, [1, 1, 9]), (1, 3, [1] * 3)],
)
def test_passes(side: Any, most: Any, expected: list[int]) -> None:
    tokenizer, model = grouped(side=side)
    scales: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, args: scales.append(next(iter(args[0].scales))))
    generate(tokenizer, model, 3, LABELS, SamplingConfig(reveal="groups", group_steps=most), torch.Generator())
    hook.remove()
    assert [scales.count(k) for k in range(3)] == expected


# What is refused.


class OwnStem(Stem):
    def forward(self, inputs: Any, revealed: Any) -> Any:
        raise NotImplementedError

    def logits(self, hidden_BLD: Tensor, memory: Any) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("reveal", ["random", "confidence"])
def test_steps_in_another_order(reveal: Any) -> None:
    tokenizer, model = grouped()
    with pytest.raises(ConfigError, match=r"order of its tokenizer's groups: set sampling\.reveal=groups"):
        generate(tokenizer, model, 3, LABELS, SamplingConfig(steps=2, reveal=reveal))


def test_codes_that_cannot_be_shown() -> None:
    tokenizer, codes = grid_tokenizer((6, 6)), {"known_tokens": "codes"}
    with pytest.raises(ConfigError, match=r"needs transformer\.in_scale_steps=true"):
        transformer_for(tokenizer, **codes)
    with pytest.raises(ConfigError, match="OwnStem embeds known tokens itself"):
        transformer_for(tokenizer, stem=OwnStem(), in_scale_steps=True, **codes)
    config = TransformerConfig(depth=1, width=16, heads=2, in_scale_steps=True, known_tokens="codes")
    with pytest.raises(ConfigError, match=r"codes of a codebook: set transformer\.known_tokens=embedding"):
        ScaleTransformer(config, Bits(4), 4, tokenizer.schedule(), (LABEL,))
