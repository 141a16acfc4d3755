"""Read a folder of image files: flat or with one sub-folder per class, with or without split sub-folders."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from nextscale.plugin import DataError
from nextscale_image.readers.raw import FileImages, RawSplit, RawSplits

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga"),
    )
)
SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def read_folder(folder: Path) -> RawSplits:
    """List the images under ``folder``, sorted by name.

    Sub-folders are splits if one is ``train`` and the others, if any, are ``val`` (``valid``, ``validation``) or
    ``test``. ``train`` among other names is a class. Hidden files and files without an image suffix are ignored.

    Raises:
        DataError: no images, an empty class, or a layout that is neither flat nor one sub-folder per class.
    """
    folders = sub_folders(folder)
    by_split: dict[str, Path] = {}
    for path in folders:
        split = SPLIT_NAMES.get(path.name.lower())
        if split in by_split:
            raise DataError(f"{folder} has two {split} folders: {by_split[split].name} and {path.name}")
        if split:
            by_split[split] = path
    if "train" in by_split and (len(by_split) > 1 or len(folders) == 1):
        others = [path for path in folders if path not in by_split.values() and images_below(path)]
        if others:
            raise DataError(
                f"{folder} has the splits {', '.join(by_split)}, but also images in {others[0].name}: "
                "move them into a split"
            )
        return {split: read_split(path) for split, path in by_split.items()}
    if by_split and len(by_split) == len(folders):
        raise DataError(f"{folder} has {', '.join(path.name for path in folders)} but no train folder")
    return {"train": read_split(folder)}


def sub_folders(folder: Path) -> list[Path]:
    """Sub-folders sorted by name, or by number if all names are numbers, so that label 10 is "10"."""
    found = [path for path in listing(folder) if path.is_dir()]
    numbers = all(path.name.isdecimal() for path in found)
    return sorted(found, key=lambda path: (int(path.name) if numbers else 0, path.name))


def listing(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith((".", "__"))]
    except OSError as error:
        raise DataError(f"cannot read folder {folder}: {error.strerror}") from None


def read_split(folder: Path) -> RawSplit:
    """Read one split: flat, or one sub-folder per class (each searched to any depth)."""
    here = [path for path in listing(folder) if path.suffix.lower() in SUFFIXES and path.is_file()]
    per_class = {path.name: images_below(path) for path in sub_folders(folder)}
    if here and any(per_class.values()):
        name = next(name for name, paths in per_class.items() if paths)
        raise DataError(f"{folder} holds both images ({min(here).name}) and folders of images ({name}): use only one")
    if here:
        return RawSplit(FileImages(sorted(here)))
    if not any(per_class.values()):
        raise DataError(f"no images in {folder} (looked for {', '.join(sorted(SUFFIXES))})")
    empty = [name for name, paths in per_class.items() if not paths]
    if empty:
        raise DataError(f"class folder {folder / empty[0]} holds no images: remove it, or fill it")
    paths = [path for paths in per_class.values() for path in paths]
    labels = np.repeat(np.arange(len(per_class)), [len(found) for found in per_class.values()])
    return RawSplit(FileImages(paths), labels, tuple(per_class))


def images_below(folder: Path) -> list[Path]:
    def unreadable(error: OSError) -> None:
        raise DataError(f"cannot read folder {error.filename}: {error.strerror}") from None

    found = []
    for root, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        names = [name for name in files if not name.startswith(".")]
        found += [Path(root, name) for name in names if os.path.splitext(name)[1].lower() in SUFFIXES]
    return sorted(found)
