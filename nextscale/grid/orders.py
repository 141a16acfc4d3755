"""Orders in which the tokens of a grid can be drawn one by one, for next-token baselines.

Orders of tokens are compared in VQGAN (Esser et al. 2021, https://arxiv.org/abs/2012.09841, appendix). No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from nextscale.tokens.pyramid import Schedule

SEED = 0
"""Of the random order."""


def raster(shape: Sequence[int]) -> np.ndarray:
    """Row by row; the last axis runs fastest."""
    return np.arange(np.prod(shape))


def spiral(shape: Sequence[int]) -> np.ndarray:
    """From the border inwards, clockwise from the first place.

    On one axis, the two ends take turns. On three axes, each slice along the first is a spiral, one after another.
    """
    left = np.arange(np.prod(shape)).reshape(shape)
    if left.ndim > 2:
        size = left[0].size
        return np.concatenate([start + spiral(shape[1:]) for start in range(0, left.size, size)])
    found = []
    while left.size:
        border, rest = left[:1], left[1:]
        found.append(border.ravel())
        left = rest[::-1] if left.ndim == 1 else np.rot90(rest)
    return np.concatenate(found)


def morton(shape: Sequence[int]) -> np.ndarray:
    """Along a Z-curve (Morton 1966): sorted by the interleaved bits of the indices along the axes.

    Places outside a grid whose sides are no powers of two are passed over.
    """
    indices = np.indices(shape).reshape(len(shape), -1)
    code = np.zeros(indices.shape[1], np.int64)
    for bit in range(int(max(shape)).bit_length()):
        for number, index in enumerate(indices[::-1]):
            code |= (index >> bit & 1) << (bit * len(shape) + number)
    return code.argsort(kind="stable")


def shuffled(shape: Sequence[int]) -> np.ndarray:
    """A random order, the same everywhere: NumPy promises that the stream of this generator never changes."""
    return np.random.RandomState(SEED).permutation(int(np.prod(shape)))


ORDERS: dict[str, Callable[[Sequence[int]], np.ndarray]] = {
    "raster": raster,
    "spiral": spiral,
    "morton": morton,
    "random": shuffled,
}
"""From the name of an order to a function that lists the places of a grid, counted row by row, in this order."""


def reading_order(schedule: Schedule, order: str) -> np.ndarray:
    """L integers: where each token that is drawn one by one lies on the packed axis of ``schedule``.

    Scales follow one another. Consecutive scales on the same grid are read together: all tokens of a place, then those
    of the next place.
    """
    offsets, found = np.array(schedule.offsets), []
    for scale, numbers in groupby(range(len(schedule)), key=lambda k: schedule.scales[k]):
        places = ORDERS[order](scale.shape)
        found.append((places[:, None] + offsets[list(numbers)]).ravel())
    return np.concatenate(found)
