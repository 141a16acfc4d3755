"""Read images from arrays: scikit-learn's digits, and .npz files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nextscale.plugin import (
    DataError,
    LimitsConfig,
    array_names,
    as_classes,
    digits_table,
    hold_out,
    read_arrays,
    shown_path,
)
from nextscale_image.readers.raw import ArrayImages, RawSplit, RawSplits

DIGITS_TEST_SHARE = 0.1
DIGITS_TEST_SEED = 0
IMAGE_KEYS, LABEL_KEYS = ("x", "images", "arr_0"), ("y", "labels")
SPLIT_SUFFIXES = {"train": "_train", "validation": "_val", "test": "_test"}
CHUNK = 4096
"""Images converted at a time, so that wider intermediate types stay small."""


def read_digits() -> RawSplits:
    """scikit-learn's 1797 real 8 x 8 digits (UCI, Alpaydin & Kaynak 1998); a fixed tenth is the test split."""
    table = digits_table()  # 64 pixels from 0 to 16, and the digit
    images_NHW = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    labels_N = table[:, -1].astype(np.int64)
    rest, test = hold_out(labels_N, len(labels_N), DIGITS_TEST_SHARE, DIGITS_TEST_SEED)
    return {
        name: RawSplit(ArrayImages(images_NHW[rows, ..., None], "digits"), labels_N[rows])
        for name, rows in (("train", rest), ("test", test))
    }


def read_npz(path: Path, limits: LimitsConfig) -> RawSplits:
    """Read ``x`` (``images``, ``arr_0``) N H W [C], ``y`` (``labels``) N, ``classes``; or ``x_train`` … ``y_test``.

    Pixels are uint8, or floats from 0 to 1; C is 1, 3, or 4 (composited on white). Labels are numbers or texts; with
    ``classes``, positions in those names.

    Raises:
        DataError: not an .npz file, no images in it, or arrays of the wrong type, shape, range, size or count.
    """
    wanted = read_arrays(path, is_known, limits)
    if "" in wanted:
        raise DataError(f"{shown_path(path)} is a single array, not an .npz file; save it with numpy.savez(path, x=…)")
    names = {split: suffix for split, suffix in SPLIT_SUFFIXES.items() if first(wanted, IMAGE_KEYS, suffix)}
    if not names and first(wanted, IMAGE_KEYS):
        names = {"train": ""}
    if "train" not in names:
        present = array_names(path)
        held = ", ".join(present[:20]) + (f" and {len(present) - 20} more" if len(present) > 20 else "")
        raise DataError(f"{shown_path(path)} holds {held or 'no arrays'}, but no x (images, arr_0) or x_train")
    return {split: npz_split(path, wanted, suffix, limits) for split, suffix in names.items()}


def is_known(key: str) -> bool:
    """Whether to read this array at all. Other arrays (captions, file names) may be large, or pickled."""
    stem = next((key.removesuffix(suffix) for suffix in SPLIT_SUFFIXES.values() if key.endswith(suffix)), key)
    return key == "classes" or stem in IMAGE_KEYS + LABEL_KEYS


def first(arrays: Mapping[str, np.ndarray], names: tuple[str, ...], suffix: str = "") -> str | None:
    return next((name + suffix for name in names if name + suffix in arrays), None)


def npz_split(path: Path, arrays: Mapping[str, np.ndarray], suffix: str, limits: LimitsConfig) -> RawSplit:
    image_key, label_key = first(arrays, IMAGE_KEYS, suffix), first(arrays, LABEL_KEYS, suffix)
    assert image_key is not None
    where = shown_path(path)
    images = ArrayImages(pixels(arrays[image_key], f"{where}: {image_key}"), f"{where}: {image_key}")
    if label_key is None:
        return RawSplit(images)
    labels, names = arrays[label_key], arrays.get("classes")
    where = f"{where}: {label_key}"
    if labels.ndim and len(labels) != len(images):
        raise DataError(f"{where} has {len(labels)} labels for the {len(images)} images")
    if names is None:
        return RawSplit(images, labels, labels_from=where)
    return RawSplit(images, *as_classes(labels, where, names, limits), labels_from=where)


def pixels(array: np.ndarray, where: str) -> np.ndarray:
    """N H W C of uint8, where C is 1 or 3."""
    array = array[..., None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4):
        shape = " x ".join(map(str, array.shape)) or "one number"
        raise DataError(f"{where} must be N H W, or N H W C with 1, 3 or 4 channels, not {shape}")
    if array.dtype.kind == "f":
        # Written so that NaN fails too.
        if array.size and not (array.min() >= 0 and array.max() <= 1):
            raise DataError(
                f"{where} holds floats from {array.min():g} to {array.max():g}; floats must lie in 0 to 1 "
                "(or pass uint8 in 0 to 255)"
            )
    elif array.dtype != np.uint8:
        raise DataError(f"{where} is {array.dtype}; images must be uint8, or floats from 0 to 1")
    channels = array.shape[-1]
    if array.dtype == np.uint8 and channels != 4:
        return array
    out = np.empty((*array.shape[:3], 3 if channels == 4 else channels), np.uint8)
    for start in range(0, len(array), CHUNK):
        part = array[start : start + CHUNK]
        part = part if part.dtype == np.uint8 else np.rint(part * 255.0).astype(np.uint8)
        out[start : start + CHUNK] = on_white(part) if channels == 4 else part
    return out


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Composite RGBA on white, as rounded RGB."""
    colour, alpha = rgba[..., :3].astype(np.uint32), rgba[..., 3:].astype(np.uint32)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
