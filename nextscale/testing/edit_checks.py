"""Invariants 18 and 19, of what a tokenizer declares beyond the state machine: ``EditsPlaces`` and ``MixesCodes``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.testing.checks import Conditions
from nextscale.testing.helpers import assert_same, assert_same_tree, leaves
from nextscale.testing.invariants import holds, likely
from nextscale.testing.place_checks import places, pyramids
from nextscale.tokens.capabilities import AddsParts, EditsPlaces, MixesCodes, ability
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.tokenizer import MultiscaleTokenizer

WHOLE = 3
"""A scale of at most this many tokens may be kept as a whole, unless the tokenizer's ``keep_whole_up_to`` says more."""


@holds("keep_tokens")
@torch.no_grad()
def check_keep_tokens(tokenizer: MultiscaleTokenizer, samples: Tensor, smaller: Tensor, larger: Tensor) -> None:
    """18. (``EditsPlaces``.) Masks (B *grid booleans) select the tokens that lie inside them.

    A larger mask never keeps fewer tokens, each sample's mask counts for itself, and as the kept part grows from one
    end of an axis, cells at that end are kept before cells at the other.
    """
    name, editor = "invariant 18 (masks)", ability(tokenizer, EditsPlaces)
    larger = larger | smaller
    few, many = editor.keep_tokens(smaller), editor.keep_tokens(larger)
    with likely("keep_tokens takes the mask for its opposite"):
        assert bool((many | ~few).all()), f"{name}: sample {_first(few & ~many)}, a larger mask keeps fewer tokens"
    with likely("keep_tokens looks at the masks of the whole batch (any(), max() without an axis)"):
        for i in range(len(smaller)):
            alone = editor.keep_tokens(smaller[i : i + 1])[0]
            assert_same(name, f"kept tokens of sample {i}", few[i], alone, batched=False)
    schedule = tokenizer.encode(samples[:1]).schedule
    at, cells = _fine_cells(tokenizer, schedule)
    if not len(cells):  # all scales may be kept whole
        return
    for axis, size in enumerate(samples.shape[2:]):
        low, high = cells[:, axis] == cells[:, axis].min(), cells[:, axis] == cells[:, axis].max()
        if bool((low & high).any()):
            continue
        for end, (near, far) in (("first", (low, high)), ("last", (high, low))):
            kept = editor.keep_tokens(_growing(samples.shape[2:], axis, end))[:, at]
            first, other = (_when(kept[:, cell].all(1), size) for cell in (near, far))
            cause = "mirrored" if other < first else "all or nothing, or swapped with another axis"
            with likely(f"keep_tokens is {cause}: cells are kept by their place along axis {axis}"):
                assert first < other, (
                    f"{name}: axis {axis}, a mask that grows from the {end} place keeps the cells there from step "
                    f"{first} on, and those at the other end from step {other} on"
                )


def _first(wrong: Tensor) -> int:
    return int(wrong.flatten(1).any(1).nonzero()[0]) if bool(wrong.any()) else 0


def _fine_cells(tokenizer: MultiscaleTokenizer, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """The indices along L of the tokens of the finest scales, and their centres; scales that may be kept whole are left
    out."""
    whole, index, centres = getattr(tokenizer, "keep_whole_up_to", WHOLE), [], []
    for first, start, part in pyramids(tokenizer, schedule):
        k = first + len(part) - 1
        if schedule.lengths[k] > whole:
            index.append(torch.arange(schedule.offsets[k], schedule.offsets[k + 1]))
            centres.append(places(part, len(part) - 1, start))
    if not index:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, len(schedule.scales[-1].shape))
    return torch.cat(index), torch.cat(centres)


def _growing(grid: torch.Size, axis: int, end: str) -> Tensor:
    """Masks S *grid that keep the first (or last) 0, 1, ... places of an axis."""
    size, index = grid[axis], torch.arange(grid[axis])
    index = index if end == "first" else index.flip(0)
    steps = index < torch.arange(size + 1)[:, None]
    shape = [size + 1, *[size if i == axis else 1 for i in range(len(grid))]]
    return steps.view(shape).expand(size + 1, *grid)


def _when(kept: Tensor, size: int) -> int:
    """The first step at which it is kept; ``size`` + 1 if never."""
    return int(kept.nonzero()[0]) if bool(kept.any()) else size + 1


@holds("splice")
@torch.no_grad()
def check_splice(
    tokenizer: MultiscaleTokenizer, samples: Tensor, one: TokenPyramid, two: TokenPyramid, conditions: Conditions = None
) -> None:
    """18. (``EditsPlaces``.) At every scale, ``splice`` of two different states keeps the known one where it should.

    With everything kept it is the known state, with nothing the other; with one half of the sample kept, the result is
    nearer to the known one at that end.
    """
    name, editor = "invariant 18 (splice)", ability(tokenizer, EditsPlaces)
    states, known = (tokenizer.states(each, conditions) for each in (one, two))
    every = torch.ones(one.tokens.shape[:2], dtype=torch.bool)
    for k, (state, other) in enumerate(zip(states[1:], known[1:], strict=True)):
        with likely("splice does nothing: return state with the places of known wherever keep is true"):
            assert_same_tree(name, "state, everything kept,", editor.splice(state, other, every), other, scale=k)
        with likely("splice takes known where nothing is kept"):
            assert_same_tree(name, "state, nothing kept,", editor.splice(state, other, ~every), state, scale=k)
    content = _content(tokenizer, samples)
    ours, theirs = content(states[-1]), content(known[-1])
    _, cells = _fine_cells(tokenizer, one.schedule)
    for axis, size in enumerate(samples.shape[2:]):
        if not len(cells) or len(cells[:, axis].unique()) < 2:
            continue
        for end in ("first", "last"):
            mask = _growing(samples.shape[2:], axis, end)[-(-size // 2)].expand(len(samples), *samples.shape[2:])
            spliced = content(editor.splice(states[-1], known[-1], editor.keep_tokens(mask)))
            place = 0 if end == "first" else spliced.shape[axis + 2] - 1
            to_known, to_other = (
                float((spliced - each).narrow(axis + 2, place, 1).square().mean()) for each in (theirs, ours)
            )
            with likely(f"splice mirrors or swaps places along axis {axis}, or takes keep for its opposite"):
                assert to_known <= to_other, (
                    f"{name}: axis {axis}, its {end} half kept: the state is nearer there to what is drawn (mean "
                    f"squared distance {to_other:.3g}) than to what is kept ({to_known:.3g})"
                )


def _content(tokenizer: MultiscaleTokenizer, samples: Tensor) -> Callable[[Any], Tensor]:
    """What a state holds at each place: the sum of its parts, or (where it is no sum) the decoded sample. Decoders may
    look far, and then say little about single places."""
    if isinstance(tokenizer, AddsParts):
        return tokenizer.sum_of
    return lambda state: ability(tokenizer, EditsPlaces).decode_like(state, samples)


@holds("unquantized")
@torch.no_grad()
def check_unquantized(tokenizer: MultiscaleTokenizer, samples: Tensor, conditions: Conditions = None) -> None:
    """18. (``EditsPlaces``.) ``unquantized`` changes nothing where nothing is kept, depends on each sample alone, and
    (``AddsParts``) is nearer to the sum of the sample's own parts than to that of another sample."""
    name, editor = "invariant 18 (unquantized)", ability(tokenizer, EditsPlaces)
    state = tokenizer.states(tokenizer.encode(samples), conditions)[-1]
    every = torch.ones(len(samples), *samples.shape[2:], dtype=torch.bool)
    with likely("unquantized takes the mask for its opposite, or ignores it"):
        assert_same_tree(name, "state, nothing kept,", editor.unquantized(state, samples, ~every), state)
    whole = editor.unquantized(state, samples, every)
    for path, value in leaves(whole):
        finite = not isinstance(value, Tensor) or not value.is_floating_point() or bool(value.isfinite().all())
        assert finite, f"{name}: state{path} is not finite"
    if not isinstance(tokenizer, AddsParts) or len(samples) < 2:
        return
    sums, features = (tokenizer.sum_of(each).double() for each in (state, whole))
    if torch.equal(sums, features):
        return  # the default: the state itself
    likeness, number = _cosines(features, sums), len(samples)
    own, others = likeness.diagonal().mean(), (likeness.sum() - likeness.diagonal().sum()) / (number * (number - 1))
    with likely("unquantized must put what encode quantizes, of the same sample, at the same places"):
        assert own > others + 0.1, (
            f"{name}: everything kept: the state is as unlike the sample's own quantized state (cosine {own:.3f}) "
            f"as unlike those of others ({others:.3f})"
        )
    for axis in range(2, sums.dim()):
        if sums.shape[axis] > 1:
            first, last = (_centre_of_change(tokenizer, state, samples, axis, place) for place in (0, -1))
            blur = (sums.shape[axis] - 1) / 2  # if a network looks far, all cells change about as much
            with likely(f"unquantized mirrors samples along axis {axis - 2}"):
                assert last > first - blur, (
                    f"{name}: everything kept: another first place along axis {axis - 2} of the samples changes the "
                    f"state around {first:.2f} cells, another last place around {last:.2f}"
                )


def _centre_of_change(tokenizer: Any, state: Any, samples: Tensor, axis: int, place: int) -> float:
    """Along ``axis``, the centre of what changes in the unquantized sum if one place of the samples changes."""
    changed = samples.clone()
    changed.select(axis, place).copy_(samples.roll(1, 0).select(axis, place))
    every = torch.ones(len(samples), *samples.shape[2:], dtype=torch.bool)
    one, two = (tokenizer.sum_of(tokenizer.unquantized(state, each, every)) for each in (samples, changed))
    change = (one - two).double().square().movedim(axis, 0).flatten(1).sum(1)
    return float((change * torch.arange(len(change))).sum() / change.sum().clamp_min(1e-30))


def _cosines(one: Tensor, two: Tensor) -> Tensor:
    """B B: how alike samples of two batches are, in what sets them apart from the mean of their batch."""
    return F.normalize((one - one.mean(0)).flatten(1)) @ F.normalize((two - two.mean(0)).flatten(1)).T


@holds("cuts")
@torch.no_grad()
def check_cuts(tokenizer: MultiscaleTokenizer, lengths: range) -> None:
    """18. (``EditsPlaces``.) ``cuts`` are places inside a sample of this length, in order, without 0 and the length."""
    editor = ability(tokenizer, EditsPlaces)
    for length in lengths:
        found = list(editor.cuts(length))
        inside = all(0 < cut < length for cut in found)
        with likely("cuts lists 0, the length or places beyond it: nothing would be known, or nothing left"):
            assert inside, f"invariant 18 (cuts): a sample of {length} places may be cut at {found}"
        assert found == sorted(set(found)), f"invariant 18 (cuts): cuts of {length} places are not in order: {found}"


@holds("soft")
@torch.no_grad()
def check_soft(
    tokenizer: MultiscaleTokenizer, pyramid: TokenPyramid, conditions: Conditions = None, atol: float = 1e-4
) -> None:
    """19. (``MixesCodes``.) ``update_soft`` with all weight on one code is ``update`` with this code."""
    mixer, state = ability(tokenizer, MixesCodes), tokenizer.initial_state(len(pyramid), conditions, pyramid.schedule)
    for k in range(len(pyramid.schedule)):
        tokens = pyramid.scale(k)
        weights: Any = F.one_hot(tokens, tokenizer.token_space.vocabulary).float()
        soft, hard = mixer.update_soft(state, k, weights), tokenizer.update(state, k, tokens)
        assert_same_tree("invariant 19 (soft = hard)", "state", soft, hard, scale=k, atol=atol)
        state = hard
