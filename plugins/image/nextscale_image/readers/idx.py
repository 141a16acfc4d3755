"""Read IDX, the format of MNIST and its relatives (http://yann.lecun.com/exdb/mnist/), gzipped or not."""

from __future__ import annotations

import gzip
import math
import re
from pathlib import Path
from typing import Protocol

import numpy as np

from nextscale.plugin import DataError, LimitsConfig, check_announced, check_file, listing, reading, shown_path
from nextscale_image.readers.raw import ArrayImages, RawSplit, RawSplits

UNSIGNED_BYTE = 0x08
GZIP = b"\x1f\x8b"
CHUNK = 2**20
IMAGES_NAME = re.compile(r"(?P<split>.*)-images[-.]idx3-ubyte(\.gz)?")
SPLITS = {"train": "train", "t10k": "test", "test": "test", "valid": "validation", "val": "validation"}

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist installs it."""
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


class Readable(Protocol):
    """A file, unpacked as it is read or not."""

    def read(self, size: int, /) -> bytes: ...


def read_idx(path: Path, axes: int, limits: LimitsConfig | None = None) -> np.ndarray:
    """Read the array in an IDX file of unsigned bytes that has this number of axes.

    The header is read before anything else is unpacked, and no more is unpacked than it declares.

    Raises:
        DataError: the file cannot be read, is not IDX, holds another type or number of axes, is too large, or has not
            as many bytes as it declares.
    """
    limits = limits or LimitsConfig()
    with reading(check_file(path)), path.open("rb") as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        with gzip.open(file) if packed else file as content:
            shape = read_header(content, path, axes)
            declared = math.prod(shape)
            by = " x ".join(map(str, shape))
            check_announced(f"{shown_path(path)} of {by}", declared, path.stat().st_size, limits)
            data = read_at_most(content, declared + 1)
            if len(data) != declared:
                more = len(data) > declared
                raise DataError(
                    f"{shown_path(path)} {'is too long' if more else 'is truncated'}: "
                    f"{'more' if more else len(data)} bytes follow its header, which declares {by} = {declared}"
                )
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_header(file: Readable, path: Path, axes: int) -> tuple[int, ...]:
    """The shape that an IDX file declares."""
    expected = bytes((0, 0, UNSIGNED_BYTE, axes))
    begin = file.read(4)
    if begin != expected:
        raise DataError(
            f"{shown_path(path)} is not an IDX file of unsigned bytes with {axes} axes: it begins with "
            f"{begin.hex(' ') or 'nothing'}, expected {expected.hex(' ')}"
        )
    sides = file.read(4 * axes)
    if len(sides) < 4 * axes:
        raise DataError(f"{shown_path(path)} is truncated: its header has {4 + len(sides)} of {4 + 4 * axes} bytes")
    return tuple(int(n) for n in np.frombuffer(sides, ">u4"))


def read_at_most(file: Readable, count: int) -> bytearray:
    """Read up to ``count`` bytes, taking memory only for those that come."""
    data = bytearray()
    while len(data) < count and (part := file.read(min(CHUNK, count - len(data)))):
        data += part
    return data


def image_files(folder: Path) -> dict[str, Path]:
    """Image files, keyed by the part of the name before ``-images``. A file wins over its .gz."""
    found: dict[str, Path] = {}
    for path in listing(folder):
        match = IMAGES_NAME.fullmatch(path.name)
        if match and (file := unpacked(path)):
            found.setdefault(match["split"], file)
    return found


def unpacked(path: Path) -> Path | None:
    """The file at ``path``; or the one in the folder there, which has the same name where Kaggle's archive of MNIST was
    unpacked."""
    inside = path / path.name
    return path if path.is_file() else inside if inside.is_file() else None


def is_idx_folder(folder: Path) -> bool:
    return bool(image_files(folder))


def labels_beside(images: Path) -> Path | None:
    """``train-labels-idx1-ubyte`` for ``train-images-idx3-ubyte``; either may be gzipped."""
    folder = images.parent.parent if images.parent.name == images.name else images.parent
    name = images.name.removesuffix(".gz").replace("-images", "-labels").replace("idx3", "idx1")
    candidates = [unpacked(folder / name), unpacked(folder / (name + ".gz"))]
    return next((path for path in candidates if path and path != images), None)


def read_split(path: Path, limits: LimitsConfig) -> RawSplit:
    """The images in a file, with the labels in the file beside it, if there is one."""
    images = ArrayImages(read_idx(path, 3, limits)[..., None], shown_path(path))
    labels = labels_beside(path)
    if labels is None:
        return RawSplit(images)
    label_N = read_idx(labels, 1, limits)
    if len(label_N) != len(images):
        raise DataError(f"{shown_path(labels)} has {len(label_N)} labels for the {len(images)} images of {path.name}")
    return RawSplit(images, label_N, labels_from=shown_path(labels))


def read_idx_folder(folder: Path, limits: LimitsConfig | None = None) -> RawSplits:
    """Read ``train-images-idx3-ubyte`` and, if present, ``t10k-…`` (test), each with its labels file."""
    files = image_files(folder)
    unknown = [path.name for name, path in files.items() if name not in SPLITS]
    if unknown or "train" not in files:
        raise DataError(
            f"{shown_path(folder)} holds {', '.join(path.name for path in files.values())}, but "
            "train-images-idx3-ubyte and t10k-images-idx3-ubyte are expected: rename the files, or give a single file"
        )
    # If there are both t10k and test, or both val and valid, the first in this order wins.
    splits: RawSplits = {}
    for name, path in sorted(files.items()):
        if SPLITS[name] not in splits:
            splits[SPLITS[name]] = read_split(path, limits or LimitsConfig())
    return splits


def read_idx_file(path: Path, limits: LimitsConfig) -> RawSplits:
    """Read one file of images, and the labels file next to it if the names match."""
    return {"train": read_split(path, limits)}


def read_fashion_mnist() -> RawSplits:
    """Read Fashion-MNIST as Debian installs it (Xiao et al. 2017, https://arxiv.org/abs/1708.07747)."""
    if not FASHION_MNIST.is_dir():
        raise DataError(f"{FASHION_MNIST} does not exist: apt install dataset-fashion-mnist")
    splits = read_idx_folder(FASHION_MNIST)
    for split in splits.values():
        split.classes = FASHION_CLASSES
    return splits
