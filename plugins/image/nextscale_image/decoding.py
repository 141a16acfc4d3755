"""Decode image files to uint8 arrays of one shape."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from nextscale.plugin import DataError, LimitsConfig, decode_image, is_grey, reading, upright_size
from nextscale_image.depth import Depth, check_depths, depth_of
from nextscale_image.readers.raw import ImageSet

T = TypeVar("T")

SKIPPING = ": remove it, or skip such images with data.skip_unreadable=true"
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


@dataclass(frozen=True)
class Found:
    """What reading has found out about an image. ``depth`` is None where only the header was read."""

    colour: bool
    depth: Depth | None = None


def read_images(
    images: ImageSet,
    shape: Shape,
    skip: bool,
    limits: LimitsConfig,
    out: np.ndarray | None = None,
    headers_only: bool = False,
) -> list[Found | None]:
    """Decode every image into ``out`` (N C H W of uint8), or only check that it can be decoded.

    Returns what was found, image by image; None if it is unreadable and ``skip`` is set.

    Raises:
        DataError: an image cannot be read (unless ``skip``), or differs in size from ``shape.as_in``.
    """

    def one(index: int) -> Found | None:
        pixels = None
        try:
            with reading(images.name(index), "image", SKIPPING), images.open(index) as image:
                found = Found(not is_grey(image))
                size = None if shape.as_in is None else upright_size(image, limits)
                if not headers_only and size in (None, (shape.height, shape.width)):
                    pixels = decode(image, shape, limits)
                    found = Found(found.colour, depth_of(image))
        except DataError:
            if not skip:
                raise
            return None
        if size is not None:
            check_size(images, index, size, shape)
        if out is not None and pixels is not None:
            out[index] = pixels
        return found

    found = parallel(one, len(images), "reading images")
    check_depths(images, [each.depth if each else None for each in found])
    return found


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


def check_size(images: ImageSet, index: int, size: tuple[int, int], shape: Shape) -> None:
    if shape.as_in is not None and size != (shape.height, shape.width):
        raise DataError(
            f"image sizes differ: {images.name(index)} is {size[0]} x {size[1]}, {shape.as_in} is "
            f"{shape.height} x {shape.width} (height x width); resize them all with data.size, such as "
            f"data.size={min(*size, shape.height, shape.width)}"
        )


def decode(image: Image.Image, shape: Shape, limits: LimitsConfig) -> np.ndarray:
    """C H W of uint8, as ``nextscale.plugin.decode_image``."""
    return decode_image(image, shape.channels, (shape.height, shape.width), limits)


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
    limits: LimitsConfig

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.shape.channels, self.shape.height, self.shape.width), np.uint8)

        def one(position: int) -> None:
            row = int(rows[position])
            with reading(self.images.name(row), "image", SKIPPING), self.images.open(row) as image:
                out[position] = decode(image, self.shape, self.limits)

        parallel(one, len(rows))
        return out
