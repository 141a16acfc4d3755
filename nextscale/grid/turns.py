"""Fixed sub-steps of a scale on a grid: blocks draw one of their cells after another, all blocks side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def block_ranks(sides: Sequence[int]) -> np.ndarray:
    """*sides integers: the order in which the cells of a block are drawn.

    The first is the corner. Each further cell is the farthest from those drawn before it, here and in the neighbouring
    blocks, so that early cells are spread evenly and late ones lie between known neighbours.
    """
    cells = np.indices(sides).reshape(len(sides), -1).T
    nearest, ranks, last = np.full(len(cells), np.inf), np.zeros(len(cells), dtype=np.int64), 0
    for rank in range(len(cells)):
        ranks[last] = rank
        apart = np.abs(cells - cells[last])
        nearest = np.minimum(nearest, np.square(np.minimum(apart, np.array(sides) - apart)).sum(1))
        last = int(nearest.argmax())
    return ranks.reshape(sides)


@lru_cache(maxsize=1024)
def block_turns(shape: tuple[int, ...], side: int, device: torch.device) -> tuple[Tensor, int]:
    """The sub-step of each cell of a grid (L integers), and the number of sub-steps.

    Blocks have ``side`` cells along each axis, or the whole axis if it is shorter. Those at the end of an axis may be
    cut.
    """
    sides = [min(side, size) for size in shape]
    ranks = block_ranks(sides)
    places = np.ix_(*[np.arange(size) % own for size, own in zip(shape, sides, strict=True)])
    # Kept on the device: sampling sends nothing, and must not leave tensors behind that training cannot use.
    with torch.inference_mode(False):
        return torch.from_numpy(ranks[places].flatten()).to(device), ranks.size
