"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

HIGHEST_PSNR = 100.0
"""dB; two equal samples would have an infinite ratio, and so would every mean with them."""


def decibels(squared_error: Tensor) -> Tensor:
    """PSNR in dB of mean squared errors between values in [-1, 1], at most ``HIGHEST_PSNR``."""
    return 10 * torch.log10(4 / squared_error.clamp_min(4 * 10 ** (-HIGHEST_PSNR / 10)))
