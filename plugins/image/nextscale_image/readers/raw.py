"""Images as a reader finds them, before they are decoded and resized."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from nextscale.plugin import DataError, content_print, file_print, fingerprint, open_image


class ImageSet(Protocol):
    """Images read by position. ``open`` may leave the pixels undecoded (Pillow reads the header first)."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The image's name in error messages: its path, or its place in an array."""
        ...

    def open(self, index: int) -> Image.Image: ...

    def identity(self, index: int) -> object:
        """What tells the image from others. It must not change if the data is moved or copied."""
        ...


@dataclass
class FileImages:
    """One file per image, somewhere below ``root``."""

    paths: Sequence[Path]
    root: Path

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def open(self, index: int) -> Image.Image:
        return open_image(self.paths[index])

    def identity(self, index: int) -> tuple[str, str]:
        """The file's name below ``root``, and its size and content (``file_print``)."""
        path = self.paths[index]
        return path.relative_to(self.root).as_posix(), file_print(path)


@dataclass
class ArrayImages:
    """``array`` is N H W C of uint8, where C is 1 or 3.

    Raises:
        DataError: images without pixels.
    """

    array: np.ndarray
    origin: str

    def __post_init__(self) -> None:
        if 0 in self.array.shape[1:]:
            shape = " x ".join(map(str, self.array.shape))
            raise DataError(f"{self.origin} of {shape} holds images without pixels: no side may be 0")

    def __len__(self) -> int:
        return len(self.array)

    def name(self, index: int) -> str:
        return f"{self.origin} image {index}"

    def open(self, index: int) -> Image.Image:
        pixels_HWC = self.array[index]
        return Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC)

    def identity(self, index: int) -> str:
        return fingerprint({"image": self.array[index]})


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
        cell = self._cell(index)
        return open_image(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])

    def identity(self, index: int) -> str:
        cell = self._cell(index)
        return file_print(cell["path"]) if cell["bytes"] is None else content_print(io.BytesIO(cell["bytes"]))

    def _cell(self, index: int) -> dict[str, Any]:
        cell = self.table[int(index)][self.column]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise ValueError("the cell is empty")
        return cell


@dataclass
class RawSplit:
    """One split. ``labels`` are N int64 positions in ``classes``; without ``classes``, N numbers or texts, which name
    the classes; or None if the split has no labels."""

    images: ImageSet
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    labels_from: str = "labels"
    """Where the labels come from, in error messages."""


RawSplits = dict[str, RawSplit]
"""``train``, and ``validation`` and ``test`` if the source has them."""
