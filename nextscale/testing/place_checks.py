"""Invariant 17, of tokenizers on a grid: where tokens are, and that what they add is seen there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nextscale.testing.helpers import assert_same, random_tokens
from nextscale.testing.invariants import holds, likely
from nextscale.tokens.capabilities import EditsPlaces, TakesSizes
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.tokenizer import MultiscaleTokenizer


def on_grid(tokenizer: MultiscaleTokenizer) -> bool:
    """Whether the places of tokens follow from the schedule: the tokenizer says so (it edits by place or takes several
    sizes), or every scale is a grid of two axes or more."""
    axes = {len(scale.shape) for scale in tokenizer.schedule().scales}
    return isinstance(tokenizer, EditsPlaces | TakesSizes) or (len(axes) == 1 and min(axes) > 1)


def pyramids(tokenizer: MultiscaleTokenizer, schedule: Schedule) -> Iterator[tuple[int, int, Schedule]]:
    """The pyramids of a schedule: each one's first scale, where it begins along the first axis, and its schedule."""
    first = start = 0
    for part in tokenizer.pyramids(schedule) if isinstance(tokenizer, TakesSizes) else [schedule]:
        yield first, start, part
        first, start = first + len(part), start + part.scales[-1].shape[0]


def places(part: Schedule, scale: int, start: int = 0) -> Tensor:
    """L_k N: the centres of the cells of one scale, in row-major order, in cells of the finest. Written out here,
    because it checks ``Schedule.coordinates`` too."""
    shape, finest = part.scales[scale].shape, part.scales[-1].shape
    index = torch.arange(part.scales[scale].length)
    axes = []
    for size, whole in zip(reversed(shape), reversed(finest), strict=True):
        axes.append((index % size + 0.5) * whole / size)
        index = index // size
    centres = torch.stack(axes[::-1], -1)
    centres[:, 0] += start
    return centres


@holds("places")
@torch.no_grad()
def check_coordinates(tokenizer: MultiscaleTokenizer, pyramid: TokenPyramid, grid: bool) -> None:
    """17. Coordinates are finite and have the same axes at all scales. On a ``grid``, they are the centres of cells in
    the order of tokens, in cells of the finest scale. scale_ids count scales, and
    ``known_scales``, if given, agree with them."""
    name, states, axes = "invariant 17 (places)", tokenizer.states(pyramid), set()
    for k in range(len(pyramid.schedule)):
        inputs = tokenizer.scale_input(states[k], k)
        shape, length = tuple(inputs.coordinates.shape), pyramid.schedule.lengths[k]
        assert len(shape) in (2, 3) and shape[-2] == length, f"{name}: scale {k}, {shape} coordinates, {length} tokens"
        assert bool(inputs.coordinates.isfinite().all()), f"{name}: scale {k}, coordinates are not finite"
        assert inputs.scale_ids.tolist() == [k] * length, f"{name}: scale {k}, scale_ids {inputs.scale_ids.tolist()}"
        assert inputs.scales == {k: length}, f"{name}: scale {k}, known_scales {inputs.scales}, not {{{k}: {length}}}"
        axes.add(shape[-1])
        assert len(axes) == 1, f"{name}: scale {k}, coordinates have {shape[-1]} axes, unlike coarser scales"
    if not grid:
        return
    for first, start, part in pyramids(tokenizer, pyramid.schedule):
        for scale in range(len(part)):
            k = first + scale
            ours, expected = tokenizer.scale_input(states[k], k).coordinates, places(part, scale, start)
            with likely(_cause_of(ours if ours.dim() == 2 else ours[0], expected)):
                for each in ours if ours.dim() == 3 else [ours]:
                    assert_same(name, "coordinates", each.float(), expected, scale=k, atol=1e-3, batched=False)


def _cause_of(ours: Tensor, expected: Tensor) -> str:
    if ours.shape == expected.shape:
        if torch.allclose(ours.flip(-1).sort(0).values, expected.sort(0).values) and ours.shape[-1] > 1:
            return "coordinates have their axes swapped: stack them in the order of the schedule's axes"
        difference = (ours - expected).unique(dim=0)
        if len(difference) == 1:
            return f"coordinates are shifted by {difference[0].tolist()}: cells are counted from their centres"
    return "coordinates are not the centres of the schedule's cells: use schedule.coordinates(k)"


@holds("locality")
@torch.no_grad()
def check_locality(tokenizer: MultiscaleTokenizer, schedule: Schedule, seed: int, tries: int = 8) -> None:
    """17. Features change where tokens change.

    Other tokens at the first cell of an axis, and other tokens at its last cell, change the features of later scales of
    the same pyramid. The centre of the change must move along this axis.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = random_tokens(tokenizer.token_space, tries, schedule.length, generator)
    base = TokenPyramid(drawn, schedule)
    for first, _, part in pyramids(tokenizer, schedule):
        for scale in range(len(part) - 1):
            _follow(tokenizer, base, first, scale, part, generator)


def _follow(
    tokenizer: MultiscaleTokenizer,
    base: TokenPyramid,
    first: int,
    scale: int,
    part: Schedule,
    generator: torch.Generator,
) -> None:
    j, own = first + scale, places(part, scale)
    for axis, size in enumerate(part.scales[scale].shape):
        later = [i for i in range(scale + 1, len(part)) if part.scales[i].shape[axis] > 1]
        if size < 2 or not later:
            continue
        ends = [own[:, axis] == value for value in (own[:, axis].min(), own[:, axis].max())]
        centres = [_centres(tokenizer, base, j, end, later, first, part, axis, generator) for end in ends]
        for i, near, far in zip(later, *centres, strict=True):
            if near is None or far is None:
                continue
            k = first + i
            moved, expected = far - near, float(own[:, axis].max() - own[:, axis].min())
            turned = (
                "mirrored" if moved < -expected / 2 else "swapped with those of another axis, or mixed over all places"
            )
            with likely(f"features are {turned} along axis {axis}: flatten and unflatten places in the same order"):
                assert moved > 0.05 * expected, (
                    f"invariant 17 (locality): scale {k}, other tokens at the last cells of axis {axis} of scale {j} "
                    f"instead of the first move the change of the features by {moved:.2g} cells, not {expected:.2g}"
                )


def _centres(
    tokenizer: MultiscaleTokenizer,
    base: TokenPyramid,
    j: int,
    at: Tensor,
    later: list[int],
    first: int,
    part: Schedule,
    axis: int,
    generator: torch.Generator,
) -> list[float | None]:
    """Along ``axis``, the centre of what other tokens ``at`` some places of scale j change in the features of later
    scales; None if they change nothing."""
    span, tokens = base.schedule.span(j), base.tokens.clone()
    others = random_tokens(tokenizer.token_space, len(base), at.shape[0], generator, avoid=base.scale(j))
    tokens[:, span] = torch.where(at.view(1, -1, *[1] * (tokens.dim() - 2)), others, base.scale(j))
    states = tokenizer.states(base)
    # Only scale j differs, so that finer tokens add the same to both.
    changed = tokenizer.states(TokenPyramid(tokens, base.schedule))
    found: list[float | None] = []
    for scale in later:
        k = first + scale
        one, two = (tokenizer.scale_input(each[k], k).features for each in (states, changed))
        if one is None or two is None:
            found.append(None)
            continue
        change = (one - two).double().square().sum((0, 2))
        where = places(part, scale)[:, axis].double()
        found.append(float((change * where).sum() / change.sum()) if change.sum() > 0 else None)
    return found
