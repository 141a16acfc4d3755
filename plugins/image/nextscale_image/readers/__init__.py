"""Readers of image sources. Each returns the raw splits it finds (``raw.RawSplits``)."""

from __future__ import annotations

import os
from pathlib import Path

from nextscale.plugin import IMAGE_SUFFIXES, DataError, LimitsConfig, check_file, exists, shown_path, unknown
from nextscale_image.readers.arrays import read_digits, read_npz
from nextscale_image.readers.folder import read_image_folder
from nextscale_image.readers.huggingface import is_saved_dataset, read_hub, read_saved_dataset
from nextscale_image.readers.idx import is_idx_folder, read_fashion_mnist, read_idx_file, read_idx_folder
from nextscale_image.readers.raw import RawSplits

BUILT_IN = {"digits": read_digits, "fashion-mnist": read_fashion_mnist}


def read_source(source: str, limits: LimitsConfig | None = None) -> RawSplits:
    """Find out what ``source`` is, and read it.

    A built-in name wins over a folder with that name (write ``./digits`` for the folder).

    Raises:
        DataError: the source does not exist, or cannot be read.
    """
    limits = limits or LimitsConfig()
    if source in BUILT_IN:
        return BUILT_IN[source]()
    if source.startswith("hf:"):
        return read_hub(source)
    path = Path(os.path.expanduser(source))
    if not source or not exists(path):
        if path.name == source and not path.suffix:
            shown = shown_path(source)
            raise DataError(f"{unknown('data source', shown, BUILT_IN)}, and no file or folder has that name")
        raise DataError(f"data source {shown_path(source)} does not exist: no such file or folder")
    if not path.is_dir():
        return read_file(path, limits)
    if is_saved_dataset(path):
        return read_saved_dataset(path)
    return read_idx_folder(path, limits) if is_idx_folder(path) else read_image_folder(path)


def read_file(path: Path, limits: LimitsConfig) -> RawSplits:
    """Read one file that holds all images: .npz, or IDX.

    Raises:
        DataError: as ``read_source``; a single image too.
    """
    suffix = check_file(path).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        raise DataError(f"{shown_path(path)} is a single image: give the folder that holds the images")
    return read_npz(path, limits) if suffix in (".npz", ".npy") else read_idx_file(path, limits)
