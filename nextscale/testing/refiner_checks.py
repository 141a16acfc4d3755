"""Invariants of sampling with the transformer's likelihood, and of transformers with a refiner: 2 and 3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nextscale.config.sections import SamplingConfig
from nextscale.sampling.generate import generate
from nextscale.testing.checks import Conditions
from nextscale.testing.helpers import assert_same
from nextscale.testing.invariants import holds
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import TokenPyramid
from nextscale.tokens.space import TokenSpace
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer


@holds("causality")
@torch.no_grad()
def check_context(
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer,
    pyramid: TokenPyramid,
    changed: Tensor,
    j: int,
    conditions: Conditions = None,
) -> None:
    """2. What a refiner sees: a token changes the logits of exactly the tokens after it in its scale.

    ``changed``: other tokens for scale j, B L_j. From some place on, the refiner is shown these instead.
    """
    name, inputs = "invariant 2 (causality)", tokenizer.teacher_forcing(pyramid, conditions)
    cond_BD = transformer.conditioner(conditions or {}, len(pyramid))
    before = transformer(inputs, cond_BD, tokens=pyramid.tokens)
    assert isinstance(before, Tensor)
    span, length = pyramid.schedule.span(j), pyramid.schedule.lengths[j]
    real = torch.ones(before.shape[:2], dtype=torch.bool) if pyramid.mask is None else pyramid.mask
    for place in {0, length // 2, length - 1}:
        tokens, at = pyramid.tokens.clone(), span.start + place
        tokens[:, at : span.stop] = changed[:, place:]
        after = transformer(inputs, cond_BD, tokens=tokens)
        assert isinstance(after, Tensor)
        later = torch.zeros_like(real)
        later[:, at + 1 : span.stop] = True
        assert_same(name, f"logits of other tokens than those after place {place}", after, before, valid=real & ~later)
        if transformer.refiner is None or not any(transformer.refiner.refined_lengths([0] * j + [length])):
            assert_same(name, "logits that no refiner changes", after, before, valid=real)
            continue
        for i in range(len(pyramid)):
            following = (later & real)[i].nonzero()[:1, 0]
            differs = bool((tokens[i, at] != pyramid.tokens[i, at]).any()) and bool(real[i, at])
            if differs and len(following):
                moved = (after[i, following] - before[i, following]).abs().max()
                assert float(moved) > 0, f"{name}: scale {j}, sample {i}: a token ignores the one at place {place}"


@holds("train_equals_sample")
@torch.no_grad()
def check_likelihood(
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer,
    pyramid: TokenPyramid,
    seed: int,
    conditions: Conditions = None,
    atol: float = 1e-4,
) -> None:
    """3. The probabilities with which a sample's tokens are drawn multiply to its likelihood under teacher forcing.

    ``pyramid`` gives the schedule. For transformers without in-scale steps.
    """
    name, count, schedule = "invariant 3 (train = sample)", len(pyramid), pyramid.schedule
    seen: dict[int, ScaleInput] = {}
    hook = transformer.register_forward_pre_hook(lambda _, args: seen.update({int(args[0].scale_ids[0]): args[0]}))
    config, generator = SamplingConfig(guidance=0), torch.Generator().manual_seed(seed)
    try:
        with _losses_of(transformer.token_space) as losses:
            drawn = generate(tokenizer, transformer, count, conditions, config, generator, schedule)
    finally:
        hook.remove()
    taken = torch.cat(losses, 1)
    every = [torch.ones(part.shape[:2], dtype=torch.bool) for part in drawn.tokens]
    mask = torch.cat([one if real is None else real for one, real in zip(every, drawn.masks, strict=True)], 1)
    tokens = TokenPyramid.pack(drawn.tokens, schedule, None if bool(mask.all()) else mask)
    cond_BD = transformer.conditioner(conditions or {}, count)
    logits = transformer(tokenizer.teacher_forcing(tokens, conditions), cond_BD, tokens=tokens.tokens)
    assert isinstance(logits, Tensor)
    parts = list(logits.split(schedule.lengths, 1))
    for k, inputs in seen.items():
        if inputs.legal is not None:
            parts[k] = parts[k].masked_fill(~inputs.legal, -torch.inf)
    forced = transformer.token_space.loss(torch.cat(parts, 1), tokens.tokens)
    assert_same(name, "negative log-likelihood of tokens", taken, forced, atol=atol, valid=mask)


@contextmanager
def _losses_of(space: TokenSpace) -> Iterator[list[Tensor]]:
    """Within the block, every draw adds the negative log-likelihoods of its tokens (B L) to the list."""
    own, losses = space.draw, []

    def draw(logits: Tensor, *settings: Any, **named: Any) -> Tensor:
        tokens = own(logits, *settings, **named)
        losses.append(space.loss(logits, tokens))
        return tokens

    space.draw = draw
    try:
        yield losses
    finally:
        del space.draw
