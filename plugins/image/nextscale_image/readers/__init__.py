"""Readers of image sources. Each returns the raw splits it finds (``raw.RawSplits``)."""

from __future__ import annotations

from pathlib import Path

from nextscale.plugin import DataError, unknown
from nextscale_image.readers.arrays import read_digits, read_npz
from nextscale_image.readers.folder import read_folder
from nextscale_image.readers.huggingface import is_saved_dataset, read_hub, read_saved_dataset
from nextscale_image.readers.idx import is_idx_folder, read_fashion_mnist, read_idx_file, read_idx_folder
from nextscale_image.readers.raw import RawSplits

BUILT_IN = {"digits": read_digits, "fashion-mnist": read_fashion_mnist}


def read_source(source: str) -> RawSplits:
    """Find out what ``source`` is, and read it.

    A built-in name wins over a folder with that name (write ``./digits`` for the folder).

    Raises:
        DataError: the source does not exist, or cannot be read.
    """
    if source in BUILT_IN:
        return BUILT_IN[source]()
    if source.startswith("hf:"):
        return read_hub(source)
    path = Path(source).expanduser()
    if not path.exists():
        if path.name == source and not path.suffix:
            raise DataError(f"{unknown('data source', source, BUILT_IN)}, and no file or folder has that name")
        raise DataError(f"data source {source} does not exist: no such file or folder")
    if path.is_file():
        return read_npz(path) if path.suffix == ".npz" else read_idx_file(path)
    if is_saved_dataset(path):
        return read_saved_dataset(path)
    return read_idx_folder(path) if is_idx_folder(path) else read_folder(path)
