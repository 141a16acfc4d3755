"""phi: the convolutions that a residual pyramid applies after upsampling."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor, nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def nearest_tick(k: int, num_scales: int, count: int) -> int:
    """The index of the convolution, one of ``count``, that scale k of ``num_scales`` uses in a partially shared phi.

    Published VAR picks the tick nearest to k / (K - 1); its ticks for four convolutions lie a little further out
    than for other counts (https://arxiv.org/abs/2404.02905, released code). In float64, because ties depend on it.
    """
    margin = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(margin, 1 - margin, count)
    return int(np.argmin(np.abs(ticks - k / max(1, num_scales - 1))))


class Phi(nn.Module):
    """phi_k(x) = (1 - ratio) x + ratio conv_k(x), on grids of ``axes`` axes.

    ``sharing`` is ``none`` (the identity), ``shared`` (one convolution for all scales), ``partial`` (``count``
    convolutions, shared by neighbouring scales) or ``scale`` (one convolution for each of ``num_scales`` scales).
    """

    def __init__(
        self,
        axes: int,
        channels: int,
        sharing: Literal["none", "shared", "partial", "scale"] = "partial",
        count: int = 4,
        num_scales: int = 10,
        ratio: float = 0.5,
    ) -> None:
        super().__init__()
        self.sharing, self.ratio = sharing, ratio
        number = {"none": 0, "shared": 1, "partial": count, "scale": num_scales}[sharing]
        convolution = CONVOLUTIONS[axes]
        self.convs = nn.ModuleList(convolution(channels, channels, 3, padding=1) for _ in range(number))

    def forward(self, x: Tensor, k: int, num_scales: int) -> Tensor:
        """B C *grid -> B C *grid; ``x`` is the part of scale ``k``, of ``num_scales``."""
        if self.sharing == "none":
            return x
        if self.sharing == "scale" and num_scales != len(self.convs):
            raise ValueError(f"phi has one convolution for each of {len(self.convs)} scales, not {num_scales}")
        index = k if self.sharing == "scale" else nearest_tick(k, num_scales, len(self.convs))
        return x.lerp(self.convs[index](x), self.ratio)
