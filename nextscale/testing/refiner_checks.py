"""Invariants of sampling with the transformer's likelihood, and of transformers with a refiner: 2 and 3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nextscale.config.sections import SamplingConfig
from nextscale.sampling.generate import generate
from nextscale.sampling.kept import where_chosen
from nextscale.testing.checks import Conditions
from nextscale.testing.helpers import assert_same
from nextscale.testing.invariants import holds
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.space import TokenSpace
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer
from nextscale.transformer.group_refiner import GroupRefiner

RULED_OUT = -1000.0
"""Where all logits are lower, earlier tokens rule out every value, and a change of them may change nothing."""
LOOKED_AT = 4
"""Sequences of a scale that are looked at in turn."""


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
    """2. What a refiner sees: a token changes the logits of exactly the tokens after it in its sequence, which is its
    scale or, with a stem of the modality's own, its group.

    ``changed``: other tokens for scale j, B L_j. From some place of a sequence on, the refiner is shown these instead.
    """
    name, inputs = "invariant 2 (causality)", tokenizer.teacher_forcing(pyramid, conditions)
    cond_BD = transformer.conditioner(conditions or {}, len(pyramid))
    before = transformer(inputs, cond_BD, tokens=pyramid.tokens)
    assert isinstance(before, Tensor)
    span, refiner = pyramid.schedule.span(j), transformer.refiner
    real = torch.ones(before.shape[:2], dtype=torch.bool) if pyramid.mask is None else pyramid.mask
    others = pyramid.tokens.clone()
    others[:, span] = changed
    rows = places = torch.full_like(real, -1, dtype=torch.long)
    if refiner is not None:
        sequences = refiner.sequences(inputs)
        rows, places = sequences.of_tokens(sequences.row), sequences.of_tokens(sequences.place)
    of_scale = torch.zeros_like(real)
    of_scale[:, span] = True
    refined = of_scale & real & (places >= 0)
    if refiner is None or not refiner.covers(j, pyramid.schedule.lengths[j]):
        after = transformer(inputs, cond_BD, tokens=others)
        assert_same(name, "logits that no refiner changes", after, before, valid=real)
        assert not bool(refined.any()), f"{name}: scale {j} is refined, and should not be"
        return
    for row in rows[refined].unique().tolist()[:LOOKED_AT]:
        own = refined & (rows == row)
        length = int(own.sum())
        for place in {0, length // 2, length - 1}:
            shown = own & (places >= place)
            tokens = where_chosen(shown, others, pyramid.tokens)
            after = transformer(inputs, cond_BD, tokens=tokens)
            assert isinstance(after, Tensor)
            later = own & (places > place)
            assert_same(
                name, f"logits of other tokens than those after place {place}", after, before, valid=real & ~later
            )
            at, following = own & (places == place), own & (places == place + 1)
            differs = bool((tokens[at] != pyramid.tokens[at]).any()) and bool(following.any())
            if differs and float(before[following].max()) > RULED_OUT:
                moved = float((after[following] - before[following]).abs().max())
                assert moved > 0, f"{name}: scale {j}, sequence {row}: a token ignores the one at place {place}"


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

    ``pyramid`` gives the number of samples and, where it is fixed, the schedule. For transformers without in-scale
    steps.
    """
    name, count = "invariant 3 (train = sample)", len(pyramid)
    schedule = None if tokenizer.adaptive else pyramid.schedule
    seen: dict[int, ScaleInput] = {}
    config, generator = SamplingConfig(guidance=0), torch.Generator().manual_seed(seed)
    with _losses_of(transformer.token_space) as losses:
        begins: list[int] = []  # of each scale, in ``losses``

        def look(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen[int(args[0].scale_ids[0])] = args[0]
            begins.append(len(losses))

        hook = transformer.register_forward_pre_hook(look)
        try:
            drawn = generate(tokenizer, transformer, count, conditions, config, generator, schedule)
        finally:
            hook.remove()
    ends = [*begins[1:], len(losses)]
    own = [losses[begin:end] for begin, end in zip(begins, ends, strict=True)]
    taken = torch.cat(
        [_of_steps(transformer, inputs, each) for inputs, each in zip(seen.values(), own, strict=True)], 1
    )
    schedule = schedule or Schedule.of([(part.shape[1],) for part in drawn.tokens])
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


def _of_steps(transformer: ScaleTransformer, inputs: ScaleInput, losses: list[Tensor]) -> Tensor:
    """B L_k: the loss of each token of a scale in the step that drew it. Groups of tokens draw all logits in each
    step, of which those at one place of the groups count."""
    refiner = transformer.refiner
    if not isinstance(refiner, GroupRefiner) or not refiner.refines(inputs):
        return torch.cat(losses, 1)
    sequences = refiner.sequences(inputs)
    places = sequences.of_tokens(sequences.place)
    return sum((torch.where(places == step, loss, 0) for step, loss in enumerate(losses)), torch.zeros(places.shape))


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
