"""Image data: from ``data.source`` to splits whose images have one shape."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from nextscale.plugin import (
    ConditionSpec,
    DataError,
    DataSplits,
    LimitsConfig,
    as_classes,
    hold_out,
    reading,
    upright_size,
)
from nextscale_image.config import ImageDataConfig
from nextscale_image.decoding import SKIPPING, Found, LazyImages, Shape, check_size, planes, read_images
from nextscale_image.readers import read_source
from nextscale_image.readers.raw import ArrayImages, ImageSet, RawSplit, RawSplits
from nextscale_image.source import ImageSource, Pixels

log = logging.getLogger("nextscale.image")

MEMORY_LIMIT = 4 * 2**30
"""Most bytes of decoded uint8 pixels to keep in memory; larger data is decoded batch by batch."""


@dataclass
class Split:
    """A split whose images have one shape. ``rows`` are the readable rows of ``pixels`` (N C H W)."""

    images: ImageSet
    pixels: Pixels
    rows: np.ndarray
    labels: np.ndarray | None
    colour: bool


def open_images(config: ImageDataConfig) -> DataSplits:
    """Open the images that ``config.source`` names, as ``ImageSource`` splits.

    If the source has no validation split, the share ``config.validation`` of the training split is held out, by class.
    ``description`` is ``{"channels", "height", "width", "classes"}``, with the size after cropping.

    Raises:
        DataError: the source is missing, empty, damaged, or inconsistent in size or classes.
    """
    raw = read_source(config.source, config.limits)
    classes = common_classes(raw, config.source, config.limits) if config.labels else ()
    shape = expected_shape(raw, config)
    crop = crop_size(shape, config)

    pixels = sum(len(split.images) for split in raw.values()) * shape.height * shape.width
    in_memory = pixels * shape.channels <= MEMORY_LIMIT
    splits = {name: load(split, shape, in_memory, config) for name, split in raw.items()}
    if config.channels is None and not any(split.colour for split in splits.values()):
        shape = replace(shape, channels=1)
        for split in splits.values():
            split.pixels = grey(split.pixels, shape)

    def source(split: Split, rows: np.ndarray) -> ImageSource:
        labels = split.labels if classes else None
        return ImageSource(split.pixels, rows, labels, crop, config.flip, split.images)

    train_rows, train = splits["train"].rows, splits["train"]
    if "validation" in splits:
        validation = source(splits["validation"], splits["validation"].rows)
    else:
        train_rows, held_rows = hold_out_validation(train, raw["train"], config)
        validation = source(train, held_rows)
    return DataSplits(
        train=source(train, train_rows),
        validation=validation,
        test=source(splits["test"], splits["test"].rows) if "test" in splits else None,
        conditions=(ConditionSpec(name="label", size=len(classes), names=classes),) if classes else (),
        description={
            "channels": shape.channels,
            "height": crop[0],
            "width": crop[1],
            "classes": list(classes),
        },
    )


def common_classes(raw: RawSplits, source: str, limits: LimitsConfig) -> tuple[str, ...]:
    """The class names of all splits; empty if the data has no labels. Labels become positions in them.

    Named classes must be the same in every split. If labels only are numbers or texts, the classes are those that occur
    in the training split, numbers by value, and other splits must have no others.
    """
    train = raw["train"]
    named = bool(train.classes)
    for split in raw.values():
        if split.labels is not None and not split.classes:
            split.labels, split.classes = as_classes(split.labels, split.labels_from, limits=limits)
        elif split.labels is not None:
            check_labels(split.labels, len(split.classes), split.images)
    for name, split in raw.items():
        if (split.labels is None) != (train.labels is None):
            labelled, flat = ("train", name) if split.labels is None else (name, "train")
            raise DataError(
                f"classes differ between splits of {source}: {labelled} has classes, {flat} has none "
                "(data.labels=false ignores them)"
            )
        if split.labels is None:
            continue
        here, there = split.classes, train.classes
        more, fewer = set(here) - set(there), set(there) - set(here) if named else set()
        if more or fewer:
            lacking, having, names = (name, "train", fewer) if fewer else ("train", name, more)
            raise DataError(
                f"classes differ between splits of {source}: {lacking} lacks {listed(names)}, which {having} has"
            )
        if named and here != there:
            raise DataError(f"{name} and train of {source} have the same classes, but in a different order")
        position = np.array([there.index(own) for own in here], np.int64)
        split.labels, split.classes = position[split.labels], there
    return train.classes


def listed(names: set[str]) -> str:
    """The first few of them."""
    first = ", ".join(sorted(names)[:10])
    return first if len(names) <= 10 else f"{first} and {len(names) - 10} more"


def check_labels(labels: np.ndarray, count: int, images: ImageSet) -> None:
    """Raise DataError for a label that has no name (Hugging Face writes -1 for a withheld label)."""
    bad = np.flatnonzero((labels < 0) | (labels >= count))
    if len(bad):
        raise DataError(
            f"{images.name(int(bad[0]))} has label {labels[bad[0]]}: it must be 0 to {count - 1} "
            "(data.labels=false ignores labels)"
        )


def expected_shape(raw: RawSplits, config: ImageDataConfig) -> Shape:
    """The shape to decode images to: the configured size, or the size of the first image.

    If ``config.channels`` is None, image files are decoded in colour and made grey afterwards if none is in colour:
    reading every header first would take a third as long as decoding.
    """
    if any(not len(split.images) for split in raw.values()):
        raise DataError(f"no images in {config.source}")
    arrays = [split.images.array for split in raw.values() if isinstance(split.images, ArrayImages)]
    grey = len(arrays) == len(raw) and all(array.shape[-1] == 1 for array in arrays)
    channels = config.channels or (1 if grey else 3)
    if config.size is not None:
        return Shape(channels, *pair(config.size))
    images = raw["train"].images
    for index in range(len(images)):
        try:
            with reading(images.name(index), "image", SKIPPING), images.open(index) as image:
                height, width = upright_size(image, config.limits)
        except DataError:
            if not config.skip_unreadable:
                raise
            continue
        return Shape(channels, height, width, as_in=images.name(index))
    raise DataError(f"no readable image in {config.source}")


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def crop_size(shape: Shape, config: ImageDataConfig) -> tuple[int, int]:
    if config.crop is None:
        return shape.height, shape.width
    height, width = pair(config.crop)
    if height > shape.height or width > shape.width:
        raise DataError(
            f"data.crop of {height} x {width} is larger than the images of {config.source}, "
            f"{shape.height} x {shape.width} (height x width)"
        )
    return height, width


def load(raw: RawSplit, shape: Shape, in_memory: bool, config: ImageDataConfig) -> Split:
    """Decode a split now, or prepare to decode it batch by batch."""
    images, skip = raw.images, config.skip_unreadable
    if isinstance(images, ArrayImages):
        check_size(images, 0, images.array.shape[1:3], shape)
    if isinstance(images, ArrayImages) and images.array.shape[1:3] == (shape.height, shape.width):
        found: list[Found | None] = [Found(images.array.shape[-1] == 3)] * len(images)
        pixels = planes(images.array, shape.channels)
    elif in_memory:
        pixels = np.empty((len(images), shape.channels, shape.height, shape.width), np.uint8)
        found = read_images(images, shape, skip, config.limits, out=pixels)
    else:
        # A batch cannot skip an image later, so the images to skip are found now.
        pixels = LazyImages(images, shape, config.limits)
        found = read_images(images, shape, skip, config.limits, headers_only=not skip)
    missing = [row for row, one in enumerate(found) if one is None]
    if len(missing) == len(found):
        raise DataError(f"no readable image in {config.source}")
    if missing:
        name = images.name(missing[0])
        log.warning("skipped %d of %d images as unreadable (first: %s)", len(missing), len(found), name)
    rows = np.flatnonzero([one is not None for one in found])
    return Split(images, pixels, rows, raw.labels, any(one.colour for one in found if one))


def grey(pixels: Pixels, shape: Shape) -> Pixels:
    """Keep one of the three equal channels."""
    if isinstance(pixels, LazyImages):
        return replace(pixels, shape=shape)
    return np.ascontiguousarray(pixels[:, :1])  # pyright: ignore


def hold_out_validation(train: Split, raw: RawSplit, config: ImageDataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training split to train on, and rows to validate with; by class, even if ``data.labels`` is false."""
    count, labels = len(train.rows), strata(raw, config.limits)
    if labels is not None:
        labels = labels[train.rows]
        labels = labels - labels.min()  # may be -1: data.labels=false does not check labels
    kept, held = hold_out(labels, count, config.validation, config.split_seed)
    if not len(kept) or not len(held):
        raise DataError(
            f"too few images: data.validation={config.validation} of the {count} training images of "
            f"{config.source} leaves {len(kept)} to train on and {len(held)} to validate with"
        )
    return train.rows[kept], train.rows[held]


def strata(raw: RawSplit, limits: LimitsConfig) -> np.ndarray | None:
    """Labels to hold out by; None without labels, or if ``data.labels`` is false and they could not be used."""
    if raw.labels is None or raw.classes:
        return raw.labels
    try:
        return as_classes(raw.labels, "labels", limits=limits)[0]
    except DataError:
        return None
