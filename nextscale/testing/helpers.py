"""Helpers of the checks: comparisons that report where things differ, and random tokens and weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.space import TokenSpace
from nextscale.tokens.tokenizer import MultiscaleTokenizer


def assert_same(
    invariant: str,
    what: str,
    ours: Tensor | None,
    expected: Tensor | None,
    *,
    scale: int | None = None,
    atol: float | None = None,
    valid: Tensor | None = None,
    batched: bool = True,
) -> None:
    """Assert that two tensors are equal bit for bit, or (``atol``) within a tolerance.

    Args:
        valid: booleans over the leading axes; only true positions are compared.
        batched: whether the first axis is B, so that the message can name the sample.

    Raises:
        AssertionError: names the invariant, the scale and the first sample that differs.
    """
    where = f"{invariant}: " + ("" if scale is None else f"scale {scale}, ")
    if ours is None or expected is None:
        assert ours is expected, f"{where}{what} is {'absent' if ours is None else 'present'} on one side only"
        return
    assert ours.shape == expected.shape, f"{where}{what} has the shape {tuple(ours.shape)}, not {tuple(expected.shape)}"
    assert ours.dtype == expected.dtype, f"{where}{what} is {ours.dtype}, not {expected.dtype}"
    if atol is None:
        same = (ours == expected) | ((ours != ours) & (expected != expected))
    else:
        same = torch.isclose(ours, expected, rtol=0, atol=atol)
    if valid is not None:
        same = same | ~valid.view(*valid.shape, *[1] * (same.dim() - valid.dim()))
    if bool(same.all()):
        return
    first = tuple((~same).nonzero()[0].tolist())
    sample = f"sample {first[0]}, " if batched else ""
    raise AssertionError(
        f"{where}{sample}{what} differs at {first}: {ours[first].item()}, not {expected[first].item()}"
        f" ({int((~same).sum())} of {same.numel()} values differ)"
    )


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, sequences, dataclasses and plain objects, each with its path."""
    if isinstance(tree, Mapping):
        children = dict(tree)
    elif isinstance(tree, list | tuple):
        children = dict(enumerate(tree))
    elif dataclasses.is_dataclass(tree):
        # Not vars(): cached properties come and go.
        children = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    elif hasattr(tree, "__dict__") and not isinstance(tree, Tensor | np.ndarray | nn.Module | type):
        children = vars(tree)
    else:
        yield path, tree
        return
    for name, child in children.items():
        yield from leaves(child, f"{path}.{name}")


def assert_same_tree(
    invariant: str, what: str, ours: Any, expected: Any, *, scale: int | None = None, atol: float | None = None
) -> None:
    """``assert_same`` for every tensor of two states, samples or other nested objects."""
    left, right = dict(leaves(ours)), dict(leaves(expected))
    where = f"{invariant}: " + ("" if scale is None else f"scale {scale}, ")
    assert left.keys() == right.keys(), f"{where}{what} has the parts {sorted(left)}, not {sorted(right)}"
    for path, value in left.items():
        other = right[path]
        if isinstance(value, np.ndarray):
            value, other = torch.from_numpy(value), torch.as_tensor(other)
        if isinstance(value, Tensor):
            assert_same(invariant, f"{what}{path}", value, other, scale=scale, atol=atol, batched=value.dim() > 0)
        else:
            assert value == other, f"{where}{what}{path} is {value!r}, not {other!r}"


def row_of(samples: Any, i: int) -> Any:
    """Sample i of a batch, as a batch of one; None if the batch cannot be taken apart.

    A tensor, anything that takes a list of rows as an index, or a dataclass whose tensors all have B rows.
    """
    if isinstance(samples, Tensor):
        return samples[i : i + 1]
    if hasattr(samples, "__getitem__") and not isinstance(samples, Mapping | list | tuple):
        return samples[[i]]
    if dataclasses.is_dataclass(samples) and not isinstance(samples, type):
        fields = {field.name: getattr(samples, field.name) for field in dataclasses.fields(samples)}
        if all(isinstance(value, Tensor) and value.dim() for value in fields.values()):
            return dataclasses.replace(samples, **{name: value[i : i + 1] for name, value in fields.items()})
    return None


def random_tokens(
    space: TokenSpace,
    num_samples: int,
    length: int,
    generator: torch.Generator,
    legal: Tensor | None = None,
    avoid: Tensor | None = None,
) -> Tensor:
    """B L *token_shape: uniform legal tokens, different from ``avoid`` wherever there is a choice."""
    shape = (num_samples, length, *space.token_shape)
    if legal is None:
        if avoid is None:
            return torch.randint(space.vocabulary, shape, generator=generator)
        return (avoid + torch.randint(1, space.vocabulary, shape, generator=generator)) % space.vocabulary
    weights = legal.double()
    if avoid is not None:
        others = weights.scatter(-1, avoid[..., None], 0)
        weights = torch.where(others.sum(-1, keepdim=True) > 0, others, weights)
    return torch.multinomial(weights.flatten(0, 1), 1, generator=generator).view(shape)


@torch.no_grad()
def random_pyramid(
    tokenizer: MultiscaleTokenizer,
    num_samples: int,
    seed: int,
    conditions: Mapping[str, Tensor] | None = None,
    schedule: Schedule | None = None,
    like: TokenPyramid | None = None,
    changed: int = 0,
) -> TokenPyramid:
    """Run the tokenizer on random legal tokens, scale by scale.

    With ``like``, take its tokens below scale ``changed``, different ones at that scale, and random ones above. The
    two pyramids then differ from scale ``changed`` on.
    """
    generator = torch.Generator().manual_seed(seed)
    schedule = like.schedule if like is not None else schedule
    state = tokenizer.initial_state(num_samples, conditions, schedule)
    tokens: list[Tensor] = []
    masks: list[Tensor] = []
    while (k := len(tokens)) < tokenizer.num_scales(state):
        inputs = tokenizer.scale_input(state, k)
        if like is not None and k < changed:
            drawn = like.scale(k)
        else:
            avoid = like.scale(k) if like is not None and k == changed else None
            drawn = random_tokens(tokenizer.token_space, num_samples, inputs.length, generator, inputs.legal, avoid)
        every = torch.ones(num_samples, inputs.length, dtype=torch.bool)
        mask = every if inputs.mask is None else inputs.mask
        # Padding holds token 0.
        tokens.append(drawn * mask.view(*mask.shape, *[1] * (drawn.dim() - 2)))
        masks.append(mask)
        state = tokenizer.update(state, k, tokens[k])
    lengths = tuple(part.shape[1] for part in tokens)
    wanted = schedule or getattr(state, "schedule", None) or tokenizer.schedule()
    if wanted.lengths != lengths:  # the number of scales depended on the drawn tokens
        wanted = Schedule.of([(length,) for length in lengths])
    packed = torch.cat(masks, 1)
    return TokenPyramid.pack(tokens, wanted, None if bool(packed.all()) else packed)


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> nn.Module:
    """Draw normal weights with which every branch affects the output.

    A fresh transformer's gammas and head are nearly zero, which would hide a wrong mask or cache.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        std = 1.0 if "codebook" in name or "embed" in name else fan_in**-0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module
