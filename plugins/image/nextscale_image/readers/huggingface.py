"""Read Hugging Face data sets, by name or saved to disk (extra: huggingface)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from nextscale.plugin import DataError
from nextscale_image.readers.raw import RawSplit, RawSplits, TableImages

log = logging.getLogger("nextscale.image")

MARKERS = ("dataset_info.json", "state.json", "dataset_dict.json")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``datasets.Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote the folder."""
    return any((folder / marker).is_file() for marker in MARKERS)


def import_datasets(source: str) -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(f"{source} needs datasets: pip install 'nextscale[huggingface]'") from None
    return datasets


def read_hub(source: str) -> RawSplits:
    """Load ``hf:NAME``, or ``hf:NAME:CONFIGURATION`` if the data set has several configurations."""
    datasets = import_datasets(source)
    name, _, configuration = source.removeprefix("hf:").partition(":")
    if not name:
        raise DataError("hf: needs the data set's name, such as hf:ylecun/mnist")
    try:
        found = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # network, name, script, cache: the library documents no common base class
        raise DataError(f"cannot load {source}: {one_line(error)}") from None
    return read_tables(datasets, found, source)


def read_saved_dataset(folder: Path) -> RawSplits:
    datasets = import_datasets(str(folder))
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"cannot load the data set saved in {folder}: {one_line(error)}") from None
    return read_tables(datasets, found, str(folder))


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def read_tables(datasets: Any, found: Any, source: str) -> RawSplits:
    """Match splits by name. If a data set has only one split, that is the training split, whatever its name."""
    tables = dict(found) if isinstance(found, dict) else {"train": found}
    if len(tables) == 1:
        tables = {"train": next(iter(tables.values()))}
    splits: RawSplits = {}
    for name, table in tables.items():
        split = SPLIT_NAMES.get(name.lower())
        if split is None or split in splits:
            log.warning("%s: split %r is not used", source, name)
            continue
        raw = read_table(datasets, table, f"{source} {name}")
        if split != "train" and raw.labels is not None and len(raw.labels) and (raw.labels < 0).all():
            # For example, ImageNet's test split.
            log.warning("%s: split %r is not used because its labels are withheld", source, name)
            continue
        splits[split] = raw
    if "train" not in splits:
        raise DataError(f"{source} has the splits {', '.join(tables) or 'none'}, but no train split")
    return splits


def read_table(datasets: Any, table: Any, where: str) -> RawSplit:
    """Read the Image column, and the ClassLabel column if there is one."""
    image = only_column(table, datasets.Image, ("image", "img"), where)
    if image is None:
        columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in table.features.items())
        raise DataError(f"{where} has no image column, only {columns}")
    label = only_column(table, datasets.ClassLabel, ("label", "labels"), where)
    # Left undecoded, so that errors can name a broken image and decoding runs in our thread pool.
    undecoded = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    images = TableImages(undecoded, image, where)
    if label is None:
        return RawSplit(images)
    cells = table[label][:]
    labels = np.array([-1 if cell is None else cell for cell in cells], dtype=np.int64)
    return RawSplit(images, labels, tuple(table.features[label].names))


def only_column(table: Any, kind: type, preferred: tuple[str, ...], where: str) -> str | None:
    names = [name for name, feature in table.features.items() if isinstance(feature, kind)]
    chosen = [name for name in preferred if name in names][:1] or names
    if len(chosen) > 1:
        raise DataError(
            f"{where} has several {kind.__name__} columns ({', '.join(chosen)}): rename the one to use to "
            f"{preferred[0]!r} (rename_column, then save_to_disk)"
        )
    return chosen[0] if chosen else None
