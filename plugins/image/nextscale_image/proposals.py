"""What ``nextscale train --minutes`` proposes for images."""

from __future__ import annotations

from typing import Any

import numpy as np

from nextscale.plugin import (
    DataError,
    DataSplits,
    Proposal,
    cooled,
    grid_proposals,
    halvings,
    reading,
    some_rows,
    upright_size,
)
from nextscale_image.config import ImageDataConfig
from nextscale_image.decoding import SKIPPING
from nextscale_image.readers import read_source
from nextscale_image.readers.raw import ArrayImages

LARGEST = 64
"""Longest side of images that a proposal trains on, in pixels. Larger ones need hours, or ``data.size``."""
LOOKED_AT = 500
"""Images whose size is looked at."""


def suit_images(config: ImageDataConfig) -> dict[str, Any]:
    """``size``, if the user gave none and the images differ in size or are larger than 64 px."""
    if config.size is not None or config.crop is not None:
        return {}
    images = read_source(config.source, config.limits)["train"].images
    if isinstance(images, ArrayImages):
        sizes = [images.array.shape[1:3]]
    else:
        sizes = []
        for row in some_rows(len(images), LOOKED_AT, 0):
            try:
                with reading(images.name(int(row)), "image", SKIPPING), images.open(int(row)) as image:
                    sizes.append(upright_size(image, config.limits))
            except DataError:
                continue  # opening the data says what is wrong, or skips the image
    if not sizes or (len(set(sizes)) == 1 and max(sizes[0]) <= LARGEST):
        return {}
    return {"size": int(min(LARGEST, np.median([min(size) for size in sizes])))}


def propose_images(data: DataSplits) -> list[Proposal]:
    """Pyramids with about 8 x 8 places at the finest scale, which comes twice: the second pass describes what the first
    left over."""
    side = max(data.description["height"], data.description["width"])
    steps = halvings(side)
    finest = -(-side // 2**steps)
    scales = [*(scale for scale in (1, 2, 4) if scale < finest), finest, finest]
    tokenizer = {
        "scales": scales,
        "channels": 16,
        "width": 16,
        "multipliers": [1, 2, 4, 4, 8, 8, 8, 8][: steps + 1],
        "blocks": 1,
        "attention": False,
        "shortcut": True,
        "quantizer": {
            "codes": 1024 if len(data.train) > 10_000 else 512,
            "update": "ema",
            "phi": "scale",
            "revive_below": 0.05,
            "revive_every": 50,
            "scale_dropout": 0.01,
        },
    }
    tokens = sum(scale * scale for scale in scales)
    guidance = 1.0 if data.conditions else 0.0
    return grid_proposals(
        tokenizer, tokens, settings={"sampling": {"guidance": guidance, "temperature": cooled(len(scales))}}
    )
