"""2-D grids as PNG files, one per picture or many tiled into one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from nextscale.errors import NextscaleError
from nextscale.storage.files import replacing

LEGIBLE_PIXELS = 64
"""An overview enlarges a grid whose short side has fewer pixels."""
GAP = 2
"""Pixels between the parts of an overview and around them."""
GROUND = 128
"""Grey, visible next to both black and white."""


def to_uint8(samples: Tensor) -> np.ndarray:
    """B H W C of uint8 from B C H W in [-1, 1]; values outside are clipped, NaN becomes mid-grey.

    Raises:
        ValueError: not four axes, or neither 1 nor 3 channels.
    """
    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise ValueError(f"expected B C H W with 1 or 3 channels, got {tuple(samples.shape)}")
    samples = samples.detach().to("cpu", torch.float32).nan_to_num(0.0).clamp(-1, 1)
    return samples.add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def write_png(image_HWC: np.ndarray, path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write one image, completely or not at all.

    Args:
        metadata: texts for the file to carry, by keyword (up to 79 Latin letters; the text may be any). Pillow reads
            them back as ``Image.open(path).text``.

    Raises:
        TrainingError: the disk is full, or the path is not writable.
    """
    texts = PngInfo()
    for name, text in (metadata or {}).items():
        texts.add_text(name, text)  # as iTXt where Latin-1 does not suffice
    with replacing(path) as partial:
        picture = Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC)
        picture.save(partial, "PNG", pnginfo=texts)
    return path


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """H W C: the images B H W C tiled row by row, enlarged by a whole factor until the short side is legible."""
    if not len(images):
        raise NextscaleError("no samples to draw")
    factor = max(1, -(-LEGIBLE_PIXELS // min(images.shape[1:3])))
    images = images.repeat(factor, 1).repeat(factor, 2)
    _, height, width, channels = images.shape
    rows = -(-len(images) // columns)
    picture = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), GROUND, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        picture[top : top + height, left : left + width] = image
    return picture


def picture_of(samples: Tensor) -> np.ndarray:
    """B H W C of uint8: something to look at for samples B C *grid in [-1, 1], of one to three axes.

    One axis: each channel as a curve, one below the other. Two: the picture itself, or the mean of its channels where
    there are not one or three. Three: the places of the first axis side by side.

    Raises:
        ValueError: no grid of one to three axes.
    """
    if not 3 <= samples.ndim <= 5:
        raise ValueError(f"expected B C and one to three axes, got {tuple(samples.shape)}")
    if samples.ndim == 3:
        return _curves(samples)
    if samples.shape[1] not in (1, 3):
        samples = samples.mean(1, keepdim=True)
    if samples.ndim == 5:
        samples = samples.movedim(2, 3).flatten(3, 4)  # B C H (T W)
    return to_uint8(samples)


def _curves(samples: Tensor, height: int = LEGIBLE_PIXELS) -> np.ndarray:
    """B (C height) T 1: white curves on black, -1 at the bottom of each."""
    values = samples.detach().to("cpu", torch.float32).nan_to_num(0.0).clamp(-1, 1)
    rows = ((1 - values) / 2 * (height - 1)).round().long()
    drawn = torch.zeros(*rows.shape[:2], height, rows.shape[2], dtype=torch.uint8)
    before = rows.roll(1, -1)
    before[..., 0] = rows[..., 0]
    places = torch.arange(height)[:, None]
    low, high = torch.minimum(rows, before)[:, :, None], torch.maximum(rows, before)[:, :, None]
    drawn[(places >= low) & (places <= high)] = 255  # joined to the place before
    return drawn.flatten(1, 2)[..., None].numpy()
