"""Masks over samples on a grid, which say what an edit keeps; and pasting the original back over the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.errors import NextscaleError

_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
TOLERATED_LOSS = 2.0
"""Where a drawn sample differs from its guess by this many times the coding error, the result is half the guess."""


def box_mask(box: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Booleans on a grid of ``shape``, True inside ``box``, which lists the start along every axis, then the ends
    (exclusive).

    Raises:
        NextscaleError: the box has the wrong number of axes, is empty, or reaches outside the grid.
    """
    axes = len(shape)
    size = " x ".join(map(str, shape))
    if len(box) != 2 * axes:
        raise NextscaleError(
            f"a box in a sample of {size} takes {2 * axes} numbers, starts then ends; got {len(box)}: {show(box)}"
        )
    ranges = list(zip(box[:axes], box[axes:], strict=True))
    if not all(0 <= start < end <= side for (start, end), side in zip(ranges, shape, strict=True)):
        raise NextscaleError(f"the box {show(box)} is empty or not inside the sample, which is {size}")
    mask = torch.zeros(tuple(shape), dtype=torch.bool)
    mask[tuple(slice(start, end) for start, end in ranges)] = True
    return mask


def show(box: Sequence[int]) -> str:
    return ",".join(map(str, box))


def check_grid(samples: Any) -> None:
    """Check that samples lie on a grid, so that an edit can keep places of it.

    Raises:
        NextscaleError: the samples do not lie on a grid.
    """
    if not isinstance(samples, Tensor) or not 3 <= samples.dim() <= 5:
        raise NextscaleError("only samples on a grid of one to three axes can be edited: a tensor B C *grid")


def as_mask(keep: Any, samples: Any) -> Tensor:
    """B *grid booleans, from one mask for all of ``samples`` (B C *grid) or one per sample.

    Raises:
        NextscaleError: the samples do not lie on a grid, or the mask has another size.
    """
    check_grid(samples)
    shape = (len(samples), *samples.shape[2:])
    mask = torch.as_tensor(keep)
    if mask.dim() == samples.dim() and mask.shape[1] == 1:
        mask = mask[:, 0]
    if tuple(mask.shape) not in (shape, shape[1:], (1, *shape[1:])):
        raise NextscaleError(
            f"the mask is {' x '.join(map(str, mask.shape))}; the samples are {' x '.join(map(str, shape[1:]))}"
        )
    return mask.bool().expand(shape)


def paste_back(originals: Tensor, edited: Tensor, keep: Tensor, feather: int = 0) -> Tensor:
    """``edited`` with the kept part of ``originals`` pasted over it (both B C *grid); ``keep`` is B *grid booleans.

    The redrawn part stays as it was drawn. The original fades in over ``feather`` places from its border inwards; the
    distance to the border is the largest over the axes (Chebyshev).
    """
    pool = _MAX_POOL[keep.dim() - 1]
    gone = 1.0 - keep[:, None].to(edited.dtype)
    share = torch.zeros_like(gone)
    for _ in range(feather + 1):
        share += (1 - gone) / (feather + 1)
        gone = pool(gone, 3, stride=1, padding=1)
    return torch.where(keep[:, None], edited.lerp(originals.to(edited), share), edited)


def with_guess(drawn: Tensor, coded: Tensor, guess: Tensor, keep: Tensor) -> Tensor:
    """``drawn`` (B C *grid), faded into ``guess`` where the two agree.

    Tokens lose some detail, so even unchanged parts are drawn slightly wrong. ``coded`` is the guess, encoded to tokens
    and decoded. The coding error is the distance between the two on the kept part (``keep``, B *grid booleans). Where
    ``drawn`` is that close to ``coded``, the guess itself is just as likely and has lost no detail. Distances are means
    over 5 places along every axis but the first.
    """
    axes = keep.dim() - 1
    places = keep[:, None].to(drawn)
    lost = (coded - guess).square().mul(places).flatten(1).sum(1) / (places.flatten(1).sum(1) * guess.shape[1])
    lost = TOLERATED_LOSS * lost.nan_to_num().clamp_min(1e-12).view(-1, *[1] * (axes + 1))
    window = [1, *(min(5, size - 1 + size % 2) for size in guess.shape[3:])]
    changed = _AVERAGE_POOL[axes](
        (drawn - coded).square().mean(1, keepdim=True), window, 1, [size // 2 for size in window],
        count_include_pad=False,
    )  # fmt: skip
    return drawn.lerp(guess.to(drawn), 1 / (1 + (changed / lost) ** 2))
