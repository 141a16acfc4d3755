"""Folders of samples: flat or one sub-folder per class, with or without train, val and test folders around them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nextscale.errors import DataError
from nextscale.toolkit.reading import shown_path

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
IGNORED = frozenset(("thumbs.db", "desktop.ini"))
"""What systems leave in folders. Hidden files and folders, and folders called ``__...``, are ignored too."""


@dataclass
class FolderSplit:
    """The samples of one split: ``labels`` are positions in ``classes``, None where the folder is flat. ``others`` are
    files beside them that are no samples."""

    paths: list[Path]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    others: list[Path] = field(default_factory=list)


def read_folder(folder: Path, is_sample: Callable[[Path], bool], samples: str) -> dict[str, FolderSplit]:
    """The splits of a folder of samples: ``train``, and where there are such folders ``validation`` and ``test``.

    Folders called train, val (valid, validation, dev) or test directly inside ``folder`` are splits, unless they stand
    among others without a train folder: then all are classes. Names above ``folder`` decide nothing. Symbolic links are
    followed; a folder is never entered twice.

    Args:
        is_sample: whether a path, a file or a folder (of frames, say), is one sample.
        samples: what messages call them: ``images``.

    Raises:
        DataError: no samples, an empty class, or a layout that is neither flat nor one folder per class.
    """
    entries = listing(folder)
    folders = [path for path in entries if os.path.isdir(path) and not is_sample(path)]
    by_split: dict[str, Path] = {}
    for path in folders:
        split = SPLIT_NAMES.get(path.name.lower())
        if split in by_split:
            raise DataError(f"{shown_path(folder)} has two {split} folders: {by_split[split].name} and {path.name}")
        if split:
            by_split[split] = path
    if "train" in by_split and (len(by_split) > 1 or len(folders) == 1):
        others = [path for path in folders if path not in by_split.values() and any(below(path, is_sample))]
        loose = [path for path in entries if is_sample(path)]
        if others or loose:
            beside = (others or loose)[0].name
            raise DataError(
                f"{shown_path(folder)} has the splits {', '.join(by_split)}, and {samples} beside them ({beside})"
            )
        return {split: read_split(path, is_sample, samples) for split, path in by_split.items()}
    if by_split and len(by_split) == len(folders):
        raise DataError(f"{shown_path(folder)} has {', '.join(path.name for path in folders)} but no train folder")
    return {"train": read_split(folder, is_sample, samples)}


def read_split(folder: Path, is_sample: Callable[[Path], bool], samples: str) -> FolderSplit:
    """One split: flat, or one sub-folder per class (each searched to any depth).

    Raises:
        DataError: as ``read_folder``.
    """
    here, others = [], []
    per_class: dict[str, list[Path]] = {}
    for path in listing(folder):
        if is_sample(path):
            here.append(path)
        elif os.path.isdir(path):
            per_class[path.name] = list(below(path, is_sample, others))
        else:
            others.append(path)
    if here and any(per_class.values()):
        name = next(name for name, paths in per_class.items() if paths)
        raise DataError(
            f"{shown_path(folder)} holds both {samples} ({here[0].name}) and folders of {samples} ({name}): use one"
        )
    if here:
        return FolderSplit(here, others=others)
    if not any(per_class.values()):
        raise DataError(f"no {samples} in {shown_path(folder)}")
    empty = [name for name, paths in per_class.items() if not paths]
    if empty:
        raise DataError(f"class folder {shown_path(folder / empty[0])} holds no {samples}: remove it, or fill it")
    paths = [path for paths in per_class.values() for path in paths]
    labels = np.repeat(np.arange(len(per_class)), [len(found) for found in per_class.values()])
    return FolderSplit(paths, labels, tuple(per_class), others)


def below(folder: Path, is_sample: Callable[[Path], bool], others: list[Path] | None = None) -> Iterator[Path]:
    """Samples at any depth, in the order of their paths; files that are none are added to ``others``.

    Symbolic links are followed, but no folder is entered twice, nor a folder around ``folder`` itself.
    """
    real = os.path.realpath(folder)
    entered = {real, *map(str, Path(real).parents)}
    levels = [iter(_listing(folder))]
    while levels:
        path = next(levels[-1], None)
        if path is None:
            levels.pop()
        elif is_sample(path):
            yield path
        elif os.path.isdir(path):
            real = os.path.realpath(path)
            if real not in entered:
                entered.add(real)
                levels.append(iter(_listing(path)))
        elif others is not None:
            others.append(path)


def listing(folder: Path) -> list[Path]:
    """What is in a folder, in the order of names; folders whose names are all numbers, in the order of those, so that
    label 10 is "10".

    Raises:
        DataError: the folder cannot be read.
    """
    found = _listing(folder)
    folders = {path for path in found if os.path.isdir(path)}
    numbers = all(path.name.isdecimal() for path in folders)
    return sorted(found, key=lambda path: (int(path.name) if numbers and path in folders else 0, path.name))


def _listing(folder: Path) -> list[Path]:
    """As ``listing``, in the order of names alone."""
    try:
        names = [name for name in sorted(os.listdir(folder)) if not is_ignored(name)]
        found = [folder / name for name in names]
        return [path for path in found if not (path.name.startswith("__") and os.path.isdir(path))]
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"cannot read folder {shown_path(folder)} ({reason})") from None


def is_ignored(name: str) -> bool:
    """Whether a name is hidden, or one of those that systems leave behind."""
    return name.startswith(".") or name.lower() in IGNORED


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A sort key that takes numbers in names as numbers: frame 10 comes after frame 9."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]
