"""2-D grids as PNG files, one per picture or many tiled into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from nextscale.errors import NextscaleError
from nextscale.storage.files import replacing
from nextscale.toolkit.lettering import PAPER, lettered

LEGIBLE_PIXELS = 64
"""An overview enlarges a grid whose short side has fewer pixels."""
GAP = 2
"""Pixels between the parts of an overview and around them."""
GROUND = 128
"""Grey, visible next to both black and white."""
FILM_ROWS = 8
FILM_COLUMNS = 12
"""Most rows and columns of a film strip: more would not fit on a screen."""


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


def tile(images: np.ndarray, columns: int, captions: Sequence[str] | None = None) -> np.ndarray:
    """H W C: the images B H W C tiled row by row, enlarged by a whole factor until the short side is legible. Below
    each stands its caption, if there are captions.

    Raises:
        ValueError: there is not one caption per image.
    """
    if not len(images):
        raise NextscaleError("no samples to draw")
    factor = max(1, -(-LEGIBLE_PIXELS // min(images.shape[1:3])))
    images = images.repeat(factor, 1).repeat(factor, 2)
    if captions is not None:
        _check_captions(captions, len(images), "images")
        strips = lettered(captions, images.shape[2]).repeat(images.shape[3], 3)
        images = np.concatenate([images, strips], 1)
    _, height, width, channels = images.shape
    rows = -(-len(images) // columns)
    picture = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), GROUND, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        picture[top : top + height, left : left + width] = image
    return picture


def film_strip(steps: Sequence[np.ndarray], captions: Sequence[str] | None = None) -> np.ndarray:
    """H W C: one row per sample, one column per step, coarsest left, with the captions of the steps on top.

    ``steps[k]`` holds pictures B H W C of the same samples after scale k. At most ``FILM_ROWS`` samples are shown. Of
    more than ``FILM_COLUMNS`` steps, evenly spaced ones are, the first and the last two among them.

    Raises:
        ValueError: steps of different shapes, or not one caption per step.
    """
    if not steps or any(step.shape != steps[0].shape for step in steps):
        raise ValueError(f"every step must have the same B H W C, got {[tuple(step.shape) for step in steps]}")
    last = len(steps) - 1  # a result, or the original beside it: the step before counts as much
    chosen = [*np.linspace(0, last - 1, min(last, FILM_COLUMNS - 1)).round().astype(int), last] if last else [0]
    images_BKHWC = np.stack([steps[k][:FILM_ROWS] for k in chosen], 1)
    strip = tile(images_BKHWC.reshape(-1, *images_BKHWC.shape[2:]), len(chosen))
    if captions is None:
        return strip
    _check_captions(captions, len(steps), "steps")
    cell = (strip.shape[1] - GAP) // len(chosen)
    letters = lettered([captions[k] for k in chosen], cell - GAP)
    header = np.full((letters.shape[1], *strip.shape[1:]), PAPER, np.uint8)
    for column, text in enumerate(letters):
        header[:, GAP + column * cell :][:, : cell - GAP] = text
    return np.concatenate([header, strip])


def _check_captions(captions: Sequence[str], number: int, what: str) -> None:
    if len(captions) != number:
        raise ValueError(f"{len(captions)} captions for {number} {what}")


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
