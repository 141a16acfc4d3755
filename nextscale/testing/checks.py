"""Invariants of a tokenizer alone, one plain function each: 1 schedule, 5 telescoping, 6 prefix, 8 round trip.

``model_checks`` holds those of a tokenizer with a transformer, ``sampling_checks`` those of sampling. A check
that fails raises AssertionError, which names the invariant, the scale and the sample. Checks need neither pytest nor
hypothesis. Models should be in evaluation mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale.storage.tokens import TokenStore, hash_module
from nextscale.testing.helpers import assert_same, assert_same_tree, leaves
from nextscale.testing.invariants import holds
from nextscale.tokens.capabilities import AddsParts, ability
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.tokenizer import MultiscaleTokenizer

Conditions = Mapping[str, Tensor] | None


@holds("schedule")
def check_schedule(schedule: Schedule, grid: bool = False) -> None:
    """1. Lengths are positive, offsets add up, spans tile L; with ``grid``, scales never shrink."""
    name, count = "invariant 1 (schedule)", 0
    assert len(schedule.offsets) == len(schedule) + 1, (
        f"{name}: {len(schedule.offsets)} offsets, {len(schedule)} scales"
    )
    for k, scale in enumerate(schedule.scales):
        length = math.prod(scale.shape)
        assert length == scale.length == schedule.lengths[k] > 0, f"{name}: scale {k} has the length {scale.length}"
        assert schedule.offsets[k] == count, f"{name}: scale {k} begins at {schedule.offsets[k]}, not {count}"
        span, end = schedule.span(k), count + length
        assert span == slice(count, end), f"{name}: scale {k} spans {span.start} to {span.stop}, not {count} to {end}"
        count += length
    assert schedule.length == schedule.offsets[-1] == count, f"{name}: L is {schedule.length}, not {count}"
    expected = [k for k, scale in enumerate(schedule.scales) for _ in range(scale.length)]
    assert schedule.scale_ids().tolist() == expected, f"{name}: scale_ids do not follow the lengths"
    if not grid:
        return
    for k, (one, two) in enumerate(pairwise(schedule.scales), start=1):
        grows = all(b >= a for a, b in zip(one.shape, two.shape, strict=True))
        assert grows, f"{name}: scale {k} shrinks from {one.shape} to {two.shape}"
    for k, scale in enumerate(schedule.scales):
        places, finest = schedule.coordinates(k), torch.tensor(schedule.scales[-1].shape)
        inside = bool(((places > 0) & (places < finest)).all())
        assert inside and len(places.unique(dim=0)) == scale.length, f"{name}: coordinates of scale {k} are wrong"


@holds("purity")
@torch.no_grad()
def check_purity(tokenizer: MultiscaleTokenizer, pyramid: TokenPyramid, conditions: Conditions = None) -> None:
    """Part of 3. No step modifies the state it is given, and a repeated step gives the same result."""
    name = "invariant 3 (states are never modified)"
    state = tokenizer.initial_state(len(pyramid), conditions, pyramid.schedule)
    for k in range(len(pyramid.schedule)):
        before = deepcopy(state)
        inputs = tokenizer.scale_input(state, k)
        after = tokenizer.update(state, k, pyramid.scale(k))
        tokenizer.decode(state)
        kept = deepcopy(after)
        assert_same_tree(name, "state", state, before, scale=k)
        assert_same_tree(name, "scale_input", tokenizer.scale_input(state, k), inputs, scale=k)
        assert_same_tree(name, "update", tokenizer.update(state, k, pyramid.scale(k)), kept, scale=k)
        assert_same_tree(name, "state after it", after, kept, scale=k)
        state = after


@holds("telescoping")
@torch.no_grad()
def check_telescoping(tokenizer: MultiscaleTokenizer, pyramid: TokenPyramid, atol: float = 1e-4) -> None:
    """5. (``AddsParts``.) The state after k is the sum of the parts of scales up to k (or the part of k, where parts
    replace each other); the last state decodes."""
    name, adder = "invariant 5 (telescoping)", ability(tokenizer, AddsParts)
    states = tokenizer.states(pyramid)
    total = torch.zeros_like(adder.sum_of(states[0]))
    assert_same(name, "sum before the first scale", adder.sum_of(states[0]), total)
    for k in range(len(pyramid.schedule)):
        part = adder.part_of(pyramid.scale(k), k, pyramid.schedule)
        total = total + part if adder.adds else part
        assert_same(name, "sum", adder.sum_of(states[k + 1]), total, scale=k, atol=atol)
    assert_same(name, "decoded sample", tokenizer.decode_tokens(pyramid), tokenizer.decode(states[-1]))


@holds("telescoping")
@torch.no_grad()
def check_stage_one(tokenizer: MultiscaleTokenizer, samples: Any, atol: float = 1e-3) -> None:
    """5. (``AddsParts``.) Stage 1 trains on the tokens and the reconstruction that stage 2 uses."""
    name, pyramid = "invariant 5 (stage 1 = stage 2)", tokenizer.encode(samples)
    reconstruction, tokens = ability(tokenizer, AddsParts).reconstruct(samples)
    assert_same(name, "tokens", tokens.tokens, pyramid.tokens)
    assert_same_tree(name, "reconstruction", reconstruction, tokenizer.decode_tokens(pyramid), atol=atol)
    shapes = [[tuple(x.shape) for _, x in leaves(each) if isinstance(x, Tensor)] for each in (samples, reconstruction)]
    assert shapes[0] == shapes[1], f"{name}: samples of shape {shapes[0]} became {shapes[1]}"


@holds("prefix")
@torch.no_grad()
def check_prefix(tokenizer: MultiscaleTokenizer, pyramid: TokenPyramid, conditions: Conditions = None) -> list[Any]:
    """6. A pyramid truncated at any k decodes to finite samples, shaped like the full one, blind to finer tokens.

    Returns:
        The decoded samples of every prefix, K + 1 batches, for the modality's own checks.
    """
    name, states = "invariant 6 (prefix)", tokenizer.states(pyramid, conditions)
    decoded = [tokenizer.decode(state) for state in states]
    for k, samples in enumerate(decoded):
        for path, value in leaves(samples):
            finite = not isinstance(value, Tensor) or not value.is_floating_point() or bool(value.isfinite().all())
            assert finite, f"{name}: after {k} scales, samples{path} are not finite"
        if isinstance(samples, Tensor):
            shapes = tuple(samples.shape), tuple(decoded[-1].shape)
            assert shapes[0] == shapes[1], f"{name}: after {k} scales, samples are {shapes[0]}, not {shapes[1]}"
        state = tokenizer.initial_state(len(pyramid), conditions, pyramid.schedule)
        for i in range(k):
            state = tokenizer.update(state, i, pyramid.scale(i))
        assert_same_tree(name, "samples", samples, tokenizer.decode(state), scale=k - 1)
    return decoded


@holds("round_trip")
@torch.no_grad()
def check_round_trip(
    tokenizer: MultiscaleTokenizer,
    samples: Any,
    folder: Path,
    conditions: Conditions = None,
    lossless: bool = False,
    others: Any = None,
) -> None:
    """8. encode -> store -> load -> decode is unchanged; a ``lossless`` tokenizer returns the samples exactly.

    ``others`` are encoded in between, to catch a decoder that remembers what was encoded.
    """
    name, pyramid = "invariant 8 (round trip)", tokenizer.encode(samples)
    conditions = conditions or {}
    writer = TokenStore.create(
        folder / "tokens.zarr",
        schedule=pyramid.schedule,
        vocabulary=tokenizer.token_space.vocabulary,
        token_shape=tokenizer.token_space.token_shape,
        num_rows=len(pyramid),
        tokenizer_hash=hash_module(tokenizer, {}),
        conditions={key: (tuple(value.shape[1:]), value.dtype) for key, value in conditions.items()},
        ragged=pyramid.mask is not None,
    )
    try:
        with writer:
            writer.append(pyramid, conditions)
    except ValueError as error:
        raise AssertionError(f"{name}: the tokens cannot be stored: {error}") from None
    store = TokenStore.open(folder / "tokens.zarr", hash_module(tokenizer, {}))
    tokens, stored, mask = store.rows(np.arange(len(pyramid)))
    loaded = TokenPyramid(tokens, store.schedule, mask)
    assert loaded.schedule == pyramid.schedule, f"{name}: the schedule became {loaded.schedule}"
    assert_same(name, "tokens", loaded.tokens, pyramid.tokens)
    assert_same(name, "mask", loaded.mask, pyramid.mask)
    for key, value in conditions.items():
        assert_same(name, key, stored[key], value)
    decoded = tokenizer.decode(tokenizer.states(pyramid, conditions)[-1])
    if others is not None:
        tokenizer.encode(others)
    again = tokenizer.decode(tokenizer.states(loaded, conditions)[-1])
    assert_same_tree(name, "decoded sample", again, decoded)
    if lossless:
        assert_same_tree(f"{name}, lossless", "sample", decoded, samples)
