"""A single picture from a file, and the mask that belongs to it."""

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
    """1 C H W in [-1, 1], brought to ``size`` (height, width) as training data are, and 1 H W booleans: the white of
    ``mask``, which is an image as large as that at ``path``.

    Raises:
        DataError: a file is missing or no image, or the mask has another size.
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
            "must be of one size"
        )
    return sample, torch.from_numpy(marked >= 128)


def _read(path: Path, shape: Shape) -> tuple[np.ndarray, tuple[int, int]]:
    """C H W of uint8, and the height and width of the file itself."""
    try:
        with Image.open(path) as image:
            return decode(image, shape), upright_size(image)
    except Exception as error:  # a damaged file may raise anything in Pillow
        missing = isinstance(error, FileNotFoundError)
        reason = "there is no such file" if missing else " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read the image {path}: {reason}") from None
