"""Read a single image from a file, and its mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nextscale.plugin import DataError
from nextscale_image.decoding import Shape, decode, upright_size


def read_image(
    path: Path, channels: int, size: tuple[int, ...], mask: Path | None = None
) -> tuple[Tensor, Tensor | None]:
    """Read an image as 1 C H W in [-1, 1], fitted to ``size`` (height, width) like training data, and its mask.

    ``mask`` is an image of the same size as the one at ``path``. It is returned as 1 H W booleans, True where white.

    Raises:
        DataError: a file is missing or not an image, or the mask has another size.
    """
    height, width = size
    pixels, found = _read(path, Shape(channels, height, width))
    sample = torch.from_numpy(pixels.astype(np.float32) / np.float32(127.5) - 1)[None]
    if mask is None:
        return sample, None
    marked, given = _read(mask, Shape(1, height, width))
    if given != found:
        raise DataError(
            f"the mask {mask} is {given[0]} x {given[1]}; {path} is {found[0]} x {found[1]} (height x width): they "
            "must have the same size"
        )
    return sample, torch.from_numpy(marked >= 128)


def _read(path: Path, shape: Shape) -> tuple[np.ndarray, tuple[int, int]]:
    """C H W of uint8, and the image's original height and width."""
    try:
        with Image.open(path) as image:
            return decode(image, shape), upright_size(image)
    except Exception as error:  # a damaged file may raise anything in Pillow
        missing = isinstance(error, FileNotFoundError)
        reason = "there is no such file" if missing else " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read the image {path}: {reason}") from None
