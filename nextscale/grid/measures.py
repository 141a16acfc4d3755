"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

HIGHEST_PSNR = 100.0
"""In dB. Two equal samples would have an infinite ratio, which would make every mean over samples infinite."""


def decibels(squared_error: Tensor) -> Tensor:
    """PSNR in dB from mean squared errors between values in [-1, 1], capped at ``HIGHEST_PSNR``."""
    return 10 * torch.log10(4 / squared_error.clamp_min(4 * 10 ** (-HIGHEST_PSNR / 10)))
