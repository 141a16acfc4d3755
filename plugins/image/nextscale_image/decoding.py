"""Decode image files to uint8 arrays of one shape."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import Progress

from nextscale.plugin import DataError
from nextscale_image.readers.raw import ImageSet

T = TypeVar("T")

GREY_MODES = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"))
ORIENTATION = 0x0112
IMAGES_PER_TASK = 32
"""Images per task of the thread pool: decoding one small image takes less time than handing over a task."""


@dataclass(frozen=True)
class Shape:
    """Shape of every image before cropping.

    ``as_in`` names the image that sets the size, if all images must already have it; None resizes them.
    """

    channels: int
    height: int
    width: int
    as_in: str | None = None


def read_images(
    images: ImageSet, shape: Shape, skip: bool, out: np.ndarray | None = None, headers_only: bool = False
) -> list[bool | None]:
    """Decode every image into ``out`` (N C H W of uint8), or only check that it can be decoded.

    Returns whether each image is in colour, or None if it is unreadable and ``skip`` is set.

    Raises:
        DataError: an image cannot be read (unless ``skip``), or differs in size from ``shape.as_in``.
    """

    def one(index: int) -> bool | None:
        try:
            with images.open(index) as image:
                colour = image.mode not in GREY_MODES
                check_size(images, index, upright_size(image), shape)
                pixels = None if headers_only else decode(image, shape)
        except DataError:
            raise
        except Exception as error:  # a damaged file may raise anything in Pillow
            if not skip:
                raise unreadable(images, index, error) from None
            return None
        if out is not None and pixels is not None:
            out[index] = pixels
        return colour

    return parallel(one, len(images), "reading images")


def parallel(function: Callable[[int], T], count: int, title: str | None = None) -> list[T]:
    """Compute ``[function(0), …]`` in a thread pool (Pillow releases the GIL while it decodes).

    With a ``title``, show a progress bar on a terminal.
    """

    def task(start: int) -> list[T]:
        return [function(index) for index in range(start, min(start + IMAGES_PER_TASK, count))]

    results: list[T] = []
    console = Console(stderr=True)
    pool = ThreadPoolExecutor(min(processors(), 32))
    try:
        with Progress(console=console, transient=True, disable=title is None or not console.is_terminal) as bar:
            row = bar.add_task(title or "", total=count)
            for part in pool.map(task, range(0, count, IMAGES_PER_TASK)):
                results += part
                bar.advance(row, len(part))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, drop the queued tasks
    return results


def processors() -> int:
    """Number of processors this process may use (all of the machine's if the system does not say)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def unreadable(images: ImageSet, index: int, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"cannot read image {images.name(index)} ({reason}): remove it, or skip such images with "
        "data.skip_unreadable=true"
    )


def check_size(images: ImageSet, index: int, size: tuple[int, int], shape: Shape) -> None:
    if shape.as_in is not None and size != (shape.height, shape.width):
        raise DataError(
            f"image sizes differ: {images.name(index)} is {size[0]} x {size[1]}, {shape.as_in} is "
            f"{shape.height} x {shape.width} (height x width); resize them all with data.size, such as "
            f"data.size={min(*size, shape.height, shape.width)}"
        )


def orientation(image: Image.Image) -> int:
    """EXIF orientation, or 1. Parsed only if there is EXIF, because parsing takes as long as everything else."""
    return image.getexif().get(ORIENTATION, 1) if "exif" in image.info else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of the image once it is turned upright."""
    width, height = image.size
    return (width, height) if orientation(image) >= 5 else (height, width)


def decode(image: Image.Image, shape: Shape) -> np.ndarray:
    """C H W of uint8: upright, transparency on white, short side resized (bicubic, antialiased), then cropped."""
    size = (shape.width, shape.height)
    turn = orientation(image)
    if image.format == "JPEG":
        # libjpeg can decode large photos at a fraction of their size; keep twice the target size for the resize.
        width, height = size if turn < 5 else size[::-1]
        if image.width >= 4 * width and image.height >= 4 * height:
            image.draft(None, (2 * width, 2 * height))  # pyright: ignore[reportArgumentType]
    upright = ImageOps.exif_transpose(image) if turn != 1 else image
    flat = in_mode(upright, "L" if shape.channels == 1 else "RGB")
    if flat.size != size:
        flat = ImageOps.fit(flat, size, Image.Resampling.BICUBIC)
    pixels = np.asarray(flat)
    return pixels[None] if shape.channels == 1 else pixels.transpose(2, 0, 1)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert to grey (L) or colour (RGB). Transparent parts become white; 16-bit grey keeps its high byte."""
    if image.mode == "F":
        raise ValueError("pixels are 32-bit floats; convert the image to 8 bits")
    if image.mode.startswith("I"):
        high = np.clip(np.asarray(image).astype(np.int64), 0, 0xFFFF) >> 8
        image = Image.fromarray(high.astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != mode:
        return image.convert(mode)
    image.load()
    return image


def planes(array_NHWC: np.ndarray, channels: int) -> np.ndarray:
    """Contiguous N C H W of uint8 with 1 or 3 channels (grey: ITU-R 601-2 luma in Pillow's integer arithmetic)."""
    count, height, width, have = array_NHWC.shape
    out = np.empty((count, channels, height, width), np.uint8)
    if have == channels or channels == 3:
        out[:] = array_NHWC.transpose(0, 3, 1, 2)
        return out
    weights = np.array((19595, 38470, 7471), np.uint32)
    for image, target in zip(array_NHWC, out, strict=True):  # one at a time, so that the wider type needs little memory
        target[0] = (image @ weights + 0x8000) >> 16
    return out


@dataclass
class LazyImages:
    """Data too large for memory, indexed like an N C H W array: decodes the requested rows."""

    images: ImageSet
    shape: Shape

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.shape.channels, self.shape.height, self.shape.width), np.uint8)

        def one(position: int) -> None:
            row = int(rows[position])
            try:
                with self.images.open(row) as image:
                    out[position] = decode(image, self.shape)
            except Exception as error:  # a damaged file may raise anything in Pillow
                raise unreadable(self.images, row, error) from None

        parallel(one, len(rows))
        return out
