"""Helpers that write pictures to disk and open them as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nextscale.errors import DataError
from nextscale_image.config import ImageDataConfig
from nextscale_image.data import open_images
from nextscale_image.source import load_all

SHARED_IMAGES = Path(__file__).parents[4] / "shared" / "data" / "images"


def opened(source: Path | str, **options: Any):
    return open_images(ImageDataConfig(source=str(source), **options))


def refused(match: str, source: Path | str, **options: Any) -> None:
    with pytest.raises(DataError, match=match) as error:
        opened(source, **options)
    assert "\n" not in str(error.value)


def picture(seed: int, height: int = 12, width: int = 12, mode: str = "RGB") -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


def fill(folder: Path, count: int = 10, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(i, **options).save(folder / f"{i}.png")
    return folder


def pixels_of(source: Any) -> np.ndarray:
    return load_all(source)[0].numpy()
