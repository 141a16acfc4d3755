"""Read a single image from a file, and its mask."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nextscale.plugin import DataError, NextscaleWarning, decode_image, open_image, reading, shown_path, upright_size

MARKED = 128
"""Grey values of a mask from here on are redrawn, and alpha values from here on are visible."""
NEARLY = 64
"""Strokes are white, or black, to within this."""


def read_image(
    path: Path, channels: int, size: tuple[int, ...], mask: Path | None = None
) -> tuple[Tensor, Tensor | None]:
    """Read an image as 1 C H W in [-1, 1], fitted to ``size`` (height, width) like training data, and its mask.

    ``mask`` is an image of the same size as the one at ``path``. It is returned as 1 H W booleans, True where white.
    Transparent parts of a mask are not marked. A mask that is the same everywhere warns.

    Raises:
        DataError: a file is missing or not an image, the mask has another size, or its layer has strokes that are not
            white.
    """
    height, width = size
    with reading(path, "image"), open_image(path) as image:
        found = upright_size(image)  # before decoding, which may reduce the image
        pixels = decode_image(image, channels, (height, width))
    sample = torch.from_numpy(pixels.astype(np.float32) / np.float32(127.5) - 1)[None]
    return sample, None if mask is None else _read_mask(mask, (height, width), path, found)


def _read_mask(mask: Path, size: tuple[int, int], path: Path, expected: tuple[int, int]) -> Tensor:
    with reading(mask, "mask"), open_image(mask) as image:
        given = upright_size(image)
        if given != expected:
            raise DataError(
                f"the mask {shown_path(mask)} is {given[0]} x {given[1]}; {shown_path(path)} is {expected[0]} x "
                f"{expected[1]} (height x width): they must have the same size"
            )
        _check_strokes(image, mask)
        marked = decode_image(image, 1, size, background="black") >= MARKED
    if marked.all() or not marked.any():
        what = "white everywhere" if marked.all() else "white nowhere"
        warnings.warn(
            f"the mask {shown_path(mask)} is {what}: it marks {'all' if marked.all() else 'nothing'}",
            NextscaleWarning,
            stacklevel=2,
        )
    return torch.from_numpy(marked)


def _check_strokes(image: Image.Image, mask: Path) -> None:
    """Refuse a layer with transparent parts whose visible parts are not white, or black and white.

    Other programs take the transparent part, or strokes of any colour, for what is to be redrawn: to guess would often
    redraw the wrong part.
    """
    if not image.has_transparency_data or image.mode.startswith("I"):
        return
    pixels = np.asarray(image.convert("RGBA"))
    visible = pixels[..., 3] >= MARKED
    if visible.all():
        return
    colours = pixels[visible][:, :3]
    white, black = (colours >= 255 - NEARLY).all(1), (colours <= NEARLY).all(1)
    if len(colours) and (not white.any() or np.mean(white | black) < 0.9):
        raise DataError(
            f"the mask {shown_path(mask)} has transparent parts, and strokes that are not white: paint what is to be "
            "redrawn white; the rest may be transparent or black"
        )
