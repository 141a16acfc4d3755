"""Images as a reader finds them, before they are decoded and resized."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image


class ImageSet(Protocol):
    """Images read by position. ``open`` may leave the pixels undecoded (Pillow reads the header first)."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The image's name in error messages: its path, or its place in an array."""
        ...

    def open(self, index: int) -> Image.Image: ...


@dataclass
class FileImages:
    """One file per image."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def open(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])


@dataclass
class ArrayImages:
    """``array`` is N H W C of uint8, where C is 1 or 3."""

    array: np.ndarray
    origin: str

    def __len__(self) -> int:
        return len(self.array)

    def name(self, index: int) -> str:
        return f"{self.origin} image {index}"

    def open(self, index: int) -> Image.Image:
        pixels_HWC = self.array[index]
        return Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC)


@dataclass
class TableImages:
    """A Hugging Face image column, read undecoded: rows are ``{"bytes": ..., "path": ...}``."""

    table: Any
    column: str
    origin: str

    def __len__(self) -> int:
        return len(self.table)

    def name(self, index: int) -> str:
        return f"{self.origin} row {index}"

    def open(self, index: int) -> Image.Image:
        cell = self.table[int(index)][self.column]
        if cell is None:
            raise ValueError("the cell is empty")
        return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])


@dataclass
class RawSplit:
    """One split. ``labels`` are N int64 positions in ``classes``, or None if the split has no labels."""

    images: ImageSet
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()


RawSplits = dict[str, RawSplit]
"""``train``, and ``validation`` and ``test`` if the source has them."""
