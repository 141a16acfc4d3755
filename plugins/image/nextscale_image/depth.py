"""Whether grey images of more than 8 bits are on one scale, and on the one that their files say."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from nextscale.plugin import DataError, grey_bits
from nextscale_image.readers.raw import ImageSet

log = logging.getLogger("nextscale.image")


@dataclass(frozen=True)
class Depth:
    """The scale of an image's grey values, and the highest of them.

    ``guessed`` is True for files of 32 bits, which do not say how many they use (``nextscale.plugin.grey_bits``).
    """

    bits: int
    highest: int
    guessed: bool


def depth_of(image: Image.Image) -> Depth | None:
    """None for images of 8 bits, or in colour."""
    if not image.mode.startswith("I"):
        return None
    highest = int(np.asarray(image).max())  # Pillow's getextrema takes no big-endian files
    guessed = image.mode == "I" and image.format not in ("PNG", "PPM")
    return Depth(grey_bits(image), highest, guessed)


def check_depths(images: ImageSet, depths: Sequence[Depth | None]) -> None:
    """Refuse 32-bit files on two scales: the darker would come out too bright. Warn where 16-bit files are all dark.

    Raises:
        DataError: values of one 32-bit file fit in 8 bits, those of another do not.
    """
    first = {depth.bits: index for index, depth in reversed([*enumerate(depths)]) if depth and depth.guessed}
    if len(first) > 1:
        raise DataError(
            f"32-bit images differ in scale: {images.name(first[8])} has values up to 255, {images.name(first[16])} "
            "higher ones: convert all to 8 or 16 bits"
        )
    deep = [depth for depth in depths if depth and depth.bits == 16]
    highest = max((depth.highest for depth in deep), default=0)
    if deep and highest < 2**12:
        name = images.name(next(index for index, depth in enumerate(depths) if depth and depth.bits == 16))
        log.warning(
            "the %d images of 16 bits are nearly black, because their values go up to %d of 65535 (first: %s): "
            "convert them to 8 bits, or scale them",
            len(deep),
            highest,
            name,
        )
