"""Read IDX, the format of MNIST and its relatives (http://yann.lecun.com/exdb/mnist/), gzipped or not."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path

import numpy as np

from nextscale.plugin import DataError
from nextscale_image.readers.raw import ArrayImages, RawSplit, RawSplits

UNSIGNED_BYTE = 0x08
IMAGES_NAME = re.compile(r"(?P<split>.*)-images[-.]idx3-ubyte(\.gz)?")
SPLITS = {"train": "train", "t10k": "test", "test": "test", "valid": "validation", "val": "validation"}

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist installs it."""
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def read_idx(path: Path, axes: int) -> np.ndarray:
    """Read the array in an IDX file of unsigned bytes that has this number of axes.

    Raises:
        DataError: the file cannot be read, is not IDX, holds another type or number of axes, or is cut short.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    expected = bytes((0, 0, UNSIGNED_BYTE, axes))
    if data[:4] != expected:
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes with {axes} axes: it begins with "
            f"{data[:4].hex(' ') or 'nothing'}, expected {expected.hex(' ')}"
        )
    header = 4 + 4 * axes
    if len(data) < header:
        raise DataError(f"{path} is truncated: its header has {len(data)} of {header} bytes")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", axes, 4))
    if len(data) - header != math.prod(shape):
        problem = "is truncated" if len(data) - header < math.prod(shape) else "is too long"
        raise DataError(
            f"{path} {problem}: {len(data) - header} bytes follow its header, which declares "
            f"{' x '.join(map(str, shape))} = {math.prod(shape)}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def image_files(folder: Path) -> dict[str, Path]:
    """Image files, keyed by the part of the name before ``-images``. A file wins over its .gz."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        match = IMAGES_NAME.fullmatch(path.name)
        if match:
            found.setdefault(match["split"], path)
    return found


def is_idx_folder(folder: Path) -> bool:
    return bool(image_files(folder))


def labels_beside(images: Path) -> Path | None:
    """``train-labels-idx1-ubyte`` for ``train-images-idx3-ubyte``; either may be gzipped."""
    name = images.name.removesuffix(".gz").replace("-images", "-labels").replace("idx3", "idx1")
    candidates = [images.with_name(name), images.with_name(name + ".gz")]
    return next((path for path in candidates if path.exists() and path != images), None)


def read_split(images: Path, labels: Path | None) -> RawSplit:
    array_NHW = read_idx(images, axes=3)
    if labels is None:
        return RawSplit(ArrayImages(array_NHW[..., None], str(images)))
    label_N = read_idx(labels, axes=1).astype(np.int64)
    if len(label_N) != len(array_NHW):
        raise DataError(f"{labels} has {len(label_N)} labels for the {len(array_NHW)} images of {images.name}")
    return RawSplit(ArrayImages(array_NHW[..., None], str(images)), label_N)


def read_idx_folder(folder: Path) -> RawSplits:
    """Read ``train-images-idx3-ubyte`` and, if present, ``t10k-…`` (test), each with its labels file."""
    files = image_files(folder)
    unknown = [path.name for name, path in files.items() if name not in SPLITS]
    if unknown or "train" not in files:
        raise DataError(
            f"{folder} holds {', '.join(path.name for path in files.values())}, but "
            "train-images-idx3-ubyte and t10k-images-idx3-ubyte are expected: rename the files, or give a single file"
        )
    # If there are both t10k and test, or both val and valid, the first in this order wins.
    splits: RawSplits = {}
    for name, path in sorted(files.items()):
        splits.setdefault(SPLITS[name], read_split(path, labels_beside(path)))
    return splits


def read_idx_file(path: Path) -> RawSplits:
    """Read one file of images, and the labels file next to it if the names match."""
    return {"train": read_split(path, labels_beside(path))}


def read_fashion_mnist() -> RawSplits:
    """Read Fashion-MNIST as Debian installs it (Xiao et al. 2017, https://arxiv.org/abs/1708.07747)."""
    if not FASHION_MNIST.is_dir():
        raise DataError(f"{FASHION_MNIST} does not exist: apt install dataset-fashion-mnist")
    splits = read_idx_folder(FASHION_MNIST)
    for split in splits.values():
        split.classes = FASHION_CLASSES
    return splits
