"""Invariants of a tokenizer with a transformer: 2 causality, 3 train = sample, 4 cached = full, 7 ragged = single.

The transformer's weights should be random (``helpers.randomize``): fresh ones hide most mistakes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nextscale.config.sections import SamplingConfig
from nextscale.sampling.generate import generate
from nextscale.testing.checks import Conditions
from nextscale.testing.helpers import assert_same, assert_same_tree
from nextscale.testing.invariants import holds
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import TokenPyramid
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import KVCache, ScaleTransformer


@holds("causality")
@torch.no_grad()
def check_causality(
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer,
    pyramid: TokenPyramid,
    changed: TokenPyramid,
    j: int,
    conditions: Conditions = None,
) -> None:
    """2. ``changed`` differs from ``pyramid`` only from scale j on, so inputs and logits of scales <= j are the same.

    A refiner sees the tokens of ``pyramid`` at scale j both times, so that what it adds is the same too.

    They are compared bit for bit. With an adaptive tokenizer or different schedules, logits are compared within 1e-4.
    Then the number of rows in a matrix product depends on the tokens, and the number of rows changes its rounding.
    """
    name, count = "invariant 2 (causality)", len(pyramid)
    for k in range(j):
        assert torch.equal(pyramid.scale(k), changed.scale(k)), f"{name}: the pyramids differ before scale {j}"
    atol = 1e-4 if tokenizer.adaptive or pyramid.schedule != changed.schedule else None
    before, after = (tokenizer.teacher_forcing(each, conditions) for each in (pyramid, changed))
    end = pyramid.schedule.offsets[j + 1]
    context = torch.cat([pyramid.tokens[:, :end], changed.tokens[:, end:]], 1)
    logits = packed_logits(transformer, before, count, conditions, tokens=pyramid.tokens)
    others = packed_logits(transformer, after, count, conditions, tokens=context)
    for k in range(j + 1):
        span = pyramid.schedule.span(k)
        _assert_same_inputs(name, _at(after, span, count, k), _at(before, span, count, k), k)
        valid = None if pyramid.mask is None else pyramid.mask[:, span]
        assert_same(name, "logits", others[:, span], logits[:, span], scale=k, atol=atol, valid=valid)


@holds("train_equals_sample")
@torch.no_grad()
def check_train_equals_sample(
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer,
    pyramid: TokenPyramid,
    conditions: Conditions = None,
    config: SamplingConfig | None = None,
    keep: Tensor | None = None,
    seed: int = 0,
) -> None:
    """3. The transformer's inputs while sampling equal teacher forcing on the drawn tokens, bit for bit.

    ``keep`` (B L booleans): tokens to take from ``pyramid``; the others are drawn. None takes all.
    """
    name, count = "invariant 3 (train = sample)", len(pyramid)
    keep = torch.ones(pyramid.tokens.shape[:2], dtype=torch.bool) if keep is None else keep
    seen: list[ScaleInput] = []
    hook = transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    generator = torch.Generator().manual_seed(seed)
    try:
        drawn = generate(tokenizer, transformer, count, conditions, config, generator, known=pyramid, keep=keep)
    finally:
        hook.remove()
    forced = tokenizer.teacher_forcing(TokenPyramid.pack(drawn.tokens, pyramid.schedule, pyramid.mask), conditions)
    assert {int(inputs.scale_ids[0]) for inputs in seen} == set(range(len(pyramid.schedule))), f"{name}: scales missing"
    for inputs in seen:
        k = int(inputs.scale_ids[0])
        expected = _at(inputs, slice(0, inputs.length), count)
        _assert_same_inputs(name, _at(forced, pyramid.schedule.span(k), count, k), expected, k)


@holds("cached_equals_full")
@torch.no_grad()
def check_cached_equals_full(
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer,
    pyramid: TokenPyramid,
    conditions: Conditions = None,
    known: Tensor | None = None,
    capacity: int = 0,
    atol: float = 1e-4,
) -> None:
    """4. Logits computed scale by scale with the key/value cache equal those of the packed, masked forward.

    With a refiner, they are also computed token by token. ``known`` (B L booleans): tokens revealed within their scale,
    for a transformer with in-scale steps. Each scale is then predicted twice, first with nothing revealed.
    ``capacity``: tokens that the cache initially has room for.
    """
    name, inputs = "invariant 4 (cached = full)", tokenizer.teacher_forcing(pyramid, conditions)
    revealed = None if known is None else (pyramid.tokens, known)
    full = packed_logits(transformer, inputs, len(pyramid), conditions, revealed, pyramid.tokens)
    cond_BD = transformer.conditioner(conditions or {}, len(pyramid))
    cache = KVCache(capacity)
    state = tokenizer.initial_state(len(pyramid), conditions, pyramid.schedule)
    for k in range(len(pyramid.schedule)):
        span, inputs = pyramid.schedule.span(k), tokenizer.scale_input(state, k)
        if known is not None:
            transformer(inputs, cond_BD, cache, (pyramid.scale(k), torch.zeros_like(known[:, span])))
        revealed = None if known is None else (pyramid.scale(k), known[:, span])
        logits = transformer(inputs, cond_BD, cache, revealed, tokens=pyramid.scale(k))
        valid = None if pyramid.mask is None else pyramid.mask[:, span]
        assert_same(name, "logits", logits, full[:, span], scale=k, atol=atol, valid=valid)
        if transformer.refiner is not None and transformer.refiner.refines(inputs):
            logits = _logits_one_by_one(transformer, inputs, cond_BD, cache, pyramid.scale(k))
            expected = full[:, span, : logits.shape[-1]]
            assert_same(name, "logits, token by token,", logits, expected, scale=k, atol=atol, valid=valid)
        state = tokenizer.update(state, k, pyramid.scale(k))


@holds("ragged_equals_single")
@torch.no_grad()
def check_ragged_equals_single(
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer,
    singles: Sequence[Any],
    joined: Any,
    conditions: Conditions = None,
    atol: float = 1e-4,
) -> None:
    """7. Samples of different sizes have the same tokens and logits alone as padded in a batch (``joined``)."""
    name, together = "invariant 7 (ragged = single)", tokenizer.encode(joined)
    inputs = tokenizer.teacher_forcing(together, conditions)
    logits = packed_logits(transformer, inputs, len(together), conditions, tokens=together.tokens)
    assert len(together) == len(singles), f"{name}: {len(singles)} samples became {len(together)}"
    for i, single in enumerate(singles):
        alone = tokenizer.encode(single)
        own = {key: value[i : i + 1] for key, value in (conditions or {}).items()}
        own_logits = packed_logits(transformer, tokenizer.teacher_forcing(alone, own), 1, own, tokens=alone.tokens)
        for k in range(max(len(together.schedule), len(alone.schedule))):
            parts = []
            for pyramid, values, row in ((together, logits, i), (alone, own_logits, 0)):
                span = pyramid.schedule.span(k) if k < len(pyramid.schedule) else slice(0, 0)
                real = slice(None) if pyramid.mask is None else pyramid.mask[row, span]
                parts.append((pyramid.tokens[row, span][real], values[row, span][real]))
            (tokens, ours), (expected, theirs) = parts
            assert_same(f"{name}, sample {i}", "tokens", tokens, expected, scale=k, batched=False)
            assert_same(f"{name}, sample {i}", "logits", ours, theirs, scale=k, atol=atol, batched=False)


def packed_logits(
    transformer: ScaleTransformer,
    inputs: ScaleInput,
    num_samples: int,
    conditions: Conditions,
    revealed: tuple[Tensor, Tensor] | None = None,
    tokens: Tensor | None = None,
) -> Tensor:
    cond_BD = transformer.conditioner(conditions or {}, num_samples)
    return transformer(inputs, cond_BD, revealed=revealed, tokens=tokens)


def _logits_one_by_one(
    transformer: ScaleTransformer, inputs: ScaleInput, cond_BD: Tensor, cache: KVCache, tokens: Tensor
) -> Tensor:
    """B L_k V_k, as in sampling; each "drawn" token is that of ``tokens``."""
    seen: list[tuple[int | Tensor, Tensor]] = []

    def follow(i: int | Tensor, logits: Tensor) -> Tensor:
        seen.append((i, logits))
        return tokens if isinstance(i, Tensor) else tokens[:, i : i + 1]

    drawn = transformer(inputs, cond_BD, cache, draw=follow)
    assert isinstance(drawn, Tensor)
    same = (drawn == tokens).flatten(2).all(2) if drawn.dim() > 2 else drawn == tokens
    assert bool((same if inputs.mask is None else same | ~inputs.mask).all()), (
        "the refiner does not return what was drawn"
    )
    result = torch.zeros(*tokens.shape[:2], seen[0][1].shape[-1] if seen else 1)
    for i, logits in seen:
        if isinstance(i, Tensor):
            result = torch.where(i[..., None], logits, result)
        else:
            result[:, i : i + 1] = logits
    return result


def _at(inputs: ScaleInput, span: slice, num_samples: int, k: int = 0) -> dict[str, Any]:
    """One scale of (packed) inputs, in a uniform form; only the first B rows, because guidance doubles the batch."""
    starts = inputs.features is None or span.stop <= inputs.start
    mask = torch.ones(num_samples, inputs.length, dtype=torch.bool) if inputs.mask is None else inputs.mask
    coordinates = (
        inputs.coordinates.expand(num_samples, -1, -1) if inputs.coordinates.dim() == 2 else inputs.coordinates
    )
    return {
        "features": None if starts else inputs.features[:num_samples, span],  # type: ignore[index]
        "coordinates": coordinates[:num_samples, span],
        "scale_ids": inputs.scale_ids[span].expand(num_samples, -1),
        "mask": mask[:num_samples, span],
        "groups": None if inputs.groups is None else inputs.groups[:num_samples, span],
        "turns": None if inputs.turns is None else inputs.turns[span].expand(num_samples, -1),
        "weight": None if inputs.weight is None else inputs.weight[:num_samples, span],
        "structure": inputs.structure[k if len(inputs.structure) > 1 else 0] if inputs.structure else None,
    }


def _assert_same_inputs(name: str, ours: dict[str, Any], expected: dict[str, Any], k: int) -> None:
    for field, value in ours.items():
        if field == "structure":
            assert_same_tree(name, "input structure", value, expected[field], scale=k)
            continue
        # Under guidance, the inputs of one scale may lack the fields that only training reads.
        if field in ("groups", "weight") and expected[field] is None:
            continue
        assert_same(name, f"input {field}", value, expected[field], scale=k)
