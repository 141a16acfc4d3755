"""Rotary positions on grids with any number of axes, computed from coordinates."""

from __future__ import annotations

import torch
from torch import Tensor


def rotation_angles(coordinates: Tensor, head_dim: int, base: float = 1e4) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (1 or B) 1 L head_dim/2, of ``coordinates`` L N or B L N.

    The pairs of a head's channels are assigned to the N axes in turn; each axis has frequencies from 1 down to
    1 / base (RoFormer, https://arxiv.org/abs/2104.09864; per axis as in https://arxiv.org/abs/2403.13298).
    """
    if coordinates.dim() == 2:
        coordinates = coordinates[None]
    pairs, axes = head_dim // 2, coordinates.shape[-1]
    index = torch.arange(pairs, device=coordinates.device)
    per_axis = -(-pairs // axes)
    frequency = base ** -((index // axes) / per_axis)
    angles = coordinates[..., index % axes].float() * frequency
    return angles.cos()[:, None], angles.sin()[:, None]


def rotate(x_BHLd: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (channel i, channel i + d/2) by its angle."""
    cos, sin = (part.to(x_BHLd.dtype) for part in rotation)
    a, b = x_BHLd.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
