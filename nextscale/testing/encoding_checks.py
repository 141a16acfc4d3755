"""Invariants of encoding and decoding: 13 encoding, 14 no memory, 15 batch = singles, 16 information.

Batches of samples are opaque. Checks that need one sample of a batch get ``singles``, each sample as a batch of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nextscale.testing.checks import Conditions
from nextscale.testing.helpers import assert_same, assert_same_tree, leaves, row_of
from nextscale.testing.invariants import holds, likely
from nextscale.tokens.capabilities import TakesSizes
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.tokenizer import MultiscaleTokenizer


@holds("encoding")
@torch.no_grad()
def check_encoding(tokenizer: MultiscaleTokenizer, samples: Any) -> None:
    """13. The same samples give the same tokens, whatever torch's global generator holds; tokens are integers."""
    first = tokenizer.encode(samples)
    assert not first.tokens.is_floating_point(), f"tokens are {first.tokens.dtype}, not integers"
    torch.rand(1)  # a hidden draw would now come out differently
    again = tokenizer.encode(samples)
    assert again.schedule == first.schedule, "the schedule differs when the same samples are encoded again"
    assert_same("invariant 13 (encoding)", "tokens encoded again", again.tokens, first.tokens)
    assert_same("invariant 13 (encoding)", "mask encoded again", again.mask, first.mask)


@holds("memory")
@torch.no_grad()
def check_memory(tokenizer: MultiscaleTokenizer, samples: Any, others: Any, conditions: Conditions = None) -> None:
    """14. The inputs, states and samples of known tokens do not depend on what was encoded, forced or decoded last."""
    name, pyramid = "invariant 14 (no memory)", tokenizer.encode(samples)
    before = _run(tokenizer, pyramid, conditions)
    other = tokenizer.encode(others)
    tokenizer.teacher_forcing(other)
    tokenizer.decode(tokenizer.states(other)[-1])
    after = _run(tokenizer, pyramid, conditions)
    for what in before:
        for k, (now, then) in enumerate(zip(after[what], before[what], strict=True)):
            assert_same_tree(name, f"{what}, after other samples were encoded,", now, then, scale=k)


def _run(tokenizer: MultiscaleTokenizer, pyramid: TokenPyramid, conditions: Conditions) -> dict[str, list[Any]]:
    states = tokenizer.states(pyramid, conditions)
    return {
        "input": [tokenizer.scale_input(state, k) for k, state in enumerate(states[:-1])],
        "decoded sample": [tokenizer.decode(state) for state in states[1:]],
    }


@holds("batch_mates")
@torch.no_grad()
def check_batch_mates(
    tokenizer: MultiscaleTokenizer,
    samples: Any,
    singles: Sequence[Any],
    conditions: Conditions = None,
    atol: float = 1e-4,
) -> None:
    """15. ``encode``, ``scale_input`` and ``decode`` give each sample what they give it alone.

    Inputs and decoded samples are compared within ``atol``, relative to the largest value: the number of rows changes
    the rounding of matrix products.
    """
    together = tokenizer.encode(samples)
    assert len(together) == len(singles), f"{len(singles)} samples became {len(together)} rows of tokens"
    states = tokenizer.states(together, conditions)
    decoded = tokenizer.decode(states[-1])
    for i, single in enumerate(singles):
        own = {key: value[i : i + 1] for key, value in (conditions or {}).items()}
        alone = tokenizer.encode(single)
        with likely("encode gives other tokens in a batch than alone: does it normalise over the batch?"):
            _compare_tokens(i, together, alone)
        own_states = tokenizer.states(alone, own)
        with likely("scale_input gives other inputs in a batch than alone: does it use statistics over the batch?"):
            _compare_inputs(tokenizer, i, (together, states), (alone, own_states), atol)
        ours, theirs = row_of(decoded, i), tokenizer.decode(own_states[-1])
        if ours is None or [_shape(x) for _, x in leaves(ours)] != [_shape(x) for _, x in leaves(theirs)]:
            continue  # padded to the largest of the batch: invariant 7 compares tokens and logits
        with likely("decode gives another sample in a batch than alone: does it normalise over the batch?"):
            name = f"invariant 15 (batch = singles): sample {i}"
            assert_same_tree(name, "decoded sample", ours, theirs, atol=atol * _largest(theirs))


def _compare_tokens(i: int, together: TokenPyramid, alone: TokenPyramid) -> None:
    for k in range(max(len(together.schedule), len(alone.schedule))):
        ours, theirs = (_real(pyramid, row, k) for pyramid, row in ((together, i), (alone, 0)))
        name = f"invariant 15 (batch = singles): sample {i}"
        assert_same(name, "tokens", ours, theirs, scale=k, batched=False)


def _real(pyramid: TokenPyramid, row: int, k: int) -> Tensor:
    """The tokens of one sample at scale k without padding; none at scales that only other samples have."""
    if k >= len(pyramid.schedule):
        return pyramid.tokens[row, :0]
    span = pyramid.schedule.span(k)
    return pyramid.tokens[row, span] if pyramid.mask is None else pyramid.tokens[row, span][pyramid.mask[row, span]]


def _compare_inputs(
    tokenizer: MultiscaleTokenizer,
    i: int,
    together: tuple[TokenPyramid, list[Any]],
    alone: tuple[TokenPyramid, list[Any]],
    atol: float,
) -> None:
    """The features, masks and legal tokens of sample i. Where schedules differ, invariant 7 compares logits."""
    if together[0].schedule != alone[0].schedule:
        return
    name = f"invariant 15 (batch = singles): sample {i}"
    for k in range(len(alone[0].schedule)):
        ours, theirs = (tokenizer.scale_input(states[k], k) for _, states in (together, alone))
        for field in ("features", "mask", "legal"):
            one, two = (getattr(inputs, field) for inputs in (ours, theirs))
            if one is not None and two is not None:
                within = atol * _largest(two) if field == "features" else None
                assert_same(name, f"input {field}", one[i], two[0], scale=k, atol=within, batched=False)


@holds("information")
@torch.no_grad()
def check_information(tokenizer: MultiscaleTokenizer, samples: Any, singles: Sequence[Any]) -> None:
    """16. Different samples do not all have the same tokens; tokens of a scale change the input of a later one."""
    pyramid = tokenizer.encode(samples)
    different = len(singles) > 1 and not all(_equal(single, singles[0]) for single in singles)
    if different and len(pyramid) > 1:
        same = bool((pyramid.tokens == pyramid.tokens[:1]).all())
        with likely("encode returns the same tokens for every sample: zeros that are never filled, or an encoder whose "
                    "output is constant"):  # fmt: skip
            assert not same or pyramid.mask is not None, f"{len(singles)} different samples all have the same tokens"


@holds("information")
@torch.no_grad()
def check_inputs_matter(
    tokenizer: MultiscaleTokenizer, pyramid: TokenPyramid, changed: TokenPyramid, j: int, conditions: Conditions = None
) -> None:
    """16. ``changed`` differs from ``pyramid`` at scale j, so the inputs of some later scale differ, unless scale j is
    the last of its pyramid."""
    if tokenizer.adaptive or torch.equal(pyramid.scale(j), changed.scale(j)) or j in _last(tokenizer, pyramid.schedule):
        return
    one, two = (
        [tokenizer.scale_input(state, k) for k, state in enumerate(tokenizer.states(each, conditions)[:-1])]
        for each in (pyramid, changed)
    )
    with likely("scale_input ignores the state: are features or structure filled from what update stored?"):
        seen = any(not _equal(_content(a), _content(b)) for a, b in zip(one[j + 1 :], two[j + 1 :], strict=True))
        assert seen, f"scale {j}: other tokens change no input of any later scale"


def _last(tokenizer: MultiscaleTokenizer, schedule: Schedule) -> set[int]:
    """The last scale of each pyramid: what they add may go unseen by others."""
    parts = tokenizer.pyramids(schedule) if isinstance(tokenizer, TakesSizes) else [schedule]
    ends, last = 0, set()
    for part in parts:
        ends += len(part)
        last.add(ends - 1)
    return last


def _content(inputs: ScaleInput) -> list[Any]:
    return [inputs.features, inputs.mask, inputs.legal, inputs.coordinates, list(inputs.structure), inputs.groups]


@holds("reconstruction")
@torch.no_grad()
def check_reconstruction(tokenizer: MultiscaleTokenizer, samples: Any, conditions: Conditions = None) -> None:
    """16. A decoded sample is nearer to the sample it was encoded from than to another of its batch, on average.

    For tensors with B rows, or trees of them; others are left to the modality. Samples that are equal say nothing.
    """
    decoded = tokenizer.decode(tokenizer.states(tokenizer.encode(samples), conditions)[-1])
    originals, ours = _flat(samples), _flat(decoded)
    if originals is None or ours is None or originals.shape != ours.shape or len(ours) < 2:
        return
    distances = torch.cdist(ours[None], originals[None])[0].square()
    own = distances.diagonal().mean()
    others = (distances.sum() - distances.diagonal().sum()) / (len(ours) * (len(ours) - 1))
    if torch.cdist(originals[None], originals[None]).max() == 0:
        return
    assert own < others, (
        f"decoded samples are as far from their own originals (mean squared distance {own:.4g}) "
        f"as from those of others ({others:.4g})"
    )


def _flat(samples: Any) -> Tensor | None:
    parts = [value for _, value in leaves(samples) if isinstance(value, Tensor)]
    if not parts or any(part.dim() == 0 or len(part) != len(parts[0]) for part in parts):
        return None
    return torch.cat([part.reshape(len(part), -1).double() for part in parts], 1)


def _equal(one: Any, two: Any) -> bool:
    left, right = dict(leaves(one)), dict(leaves(two))
    if left.keys() != right.keys():
        return False
    return all(
        torch.equal(value, right[path])
        if isinstance(value, Tensor) and isinstance(right[path], Tensor)
        else value is right[path] or bool(value == right[path])
        for path, value in left.items()
    )


def _shape(value: Any) -> Any:
    return tuple(value.shape) if hasattr(value, "shape") else type(value)


def _largest(tree: Any) -> float:
    values = [
        float(v.abs().max()) for _, v in leaves(tree) if isinstance(v, Tensor) and v.is_floating_point() and v.numel()
    ]
    return max([1.0, *values])
