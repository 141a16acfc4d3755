"""Read Hugging Face data sets, by name or saved to disk (extra: huggingface)."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np

from nextscale.plugin import SPLIT_NAMES, DataError, shown_path
from nextscale_image.readers.raw import RawSplit, RawSplits, TableImages

log = logging.getLogger("nextscale.image")

MARKERS = ("dataset_info.json", "state.json", "dataset_dict.json")
NAME = re.compile(r"hf:(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<configuration>[^:/]+))?")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "y")
"""Columns of numbers or texts that are labels, where no column is declared as one; the first that there is."""


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
    match = NAME.fullmatch(source)
    if match is None:
        raise DataError(
            f"{shown_path(source)} needs the data set's name, OWNER/NAME or OWNER/NAME:CONFIGURATION, such as "
            "hf:ylecun/mnist"
        )
    try:
        found = datasets.load_dataset(match["name"], match["configuration"])
    except Exception as error:  # network, name, script, cache: the library documents no common base class
        raise DataError(f"cannot load {shown_path(source)}: {one_line(error)}") from None
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
        if split != "train" and are_withheld(raw.labels):
            log.warning("%s: split %r is not used because its labels are withheld", source, name)
            continue
        splits[split] = raw
    if "train" not in splits:
        raise DataError(f"{source} has the splits {', '.join(tables) or 'none'}, but no train split")
    return splits


def read_table(datasets: Any, table: Any, where: str) -> RawSplit:
    """Read the Image column, and the labels if there are any."""
    image = only_column(table, datasets.Image, ("image", "img"), where)
    if image is None:
        columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in table.features.items())
        raise DataError(f"{where} has no image column, only {columns}")
    # Left undecoded, so that errors can name a broken image and decoding runs in our thread pool.
    undecoded = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return RawSplit(TableImages(undecoded, image, where), *read_labels(datasets, table, image, where), where)


def read_labels(datasets: Any, table: Any, image: str, where: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The ClassLabel column with its names; or else a column of integers or texts that is called like labels, without.

    One line says so if there are other columns, but none with labels.
    """
    declared = only_column(table, datasets.ClassLabel, ("label", "labels"), where)
    if declared is not None:
        cells = [-1 if cell is None else cell for cell in table[declared][:]]
        return np.array(cells, dtype=np.int64), tuple(table.features[declared].names)
    name = next((name for name in LABEL_COLUMNS if name in table.features and name != image), None)
    cells = [] if name is None else table[name][:]
    if name is None or not all(cell is None or isinstance(cell, bool | int | str) for cell in cells):
        others = [column for column in table.features if column != image]
        if others:
            log.warning(
                "%s: no class labels are read from the columns %s; labels are integers or texts in a column called %s",
                where,
                ", ".join(others),
                " or ".join(LABEL_COLUMNS),
            )
        return None, ()
    return np.array(cells, dtype=object if None in cells else None), ()


def are_withheld(labels: np.ndarray | None) -> bool:
    """Whether no sample has a label: None, or -1 for a ClassLabel. ImageNet's test split is such a split."""
    if labels is None or not len(labels) or labels.dtype.kind not in "iO":
        return False
    return all(label is None or (isinstance(label, int) and label < 0) for label in labels.tolist())


def only_column(table: Any, kind: type, preferred: tuple[str, ...], where: str) -> str | None:
    names = [name for name, feature in table.features.items() if isinstance(feature, kind)]
    chosen = [name for name in preferred if name in names][:1] or names
    if len(chosen) > 1:
        raise DataError(
            f"{where} has several {kind.__name__} columns ({', '.join(chosen)}): rename the one to use to "
            f"{preferred[0]!r} (rename_column, then save_to_disk)"
        )
    return chosen[0] if chosen else None
