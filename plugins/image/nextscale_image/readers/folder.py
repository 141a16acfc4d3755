"""Read a folder of image files: flat or with one sub-folder per class, with or without split sub-folders."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from nextscale.plugin import IMAGE_SUFFIXES, DataError, read_folder, shown_path
from nextscale_image.readers.raw import FileImages, RawSplit, RawSplits

log = logging.getLogger("nextscale.image")


def is_image(path: Path) -> bool:
    """Whether a path is to be read as an image, by its suffix. Dead links and named pipes are too: they are refused, or
    skipped, by name."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not os.path.isdir(path)


def read_image_folder(folder: Path) -> RawSplits:
    """List the images under ``folder``, as ``nextscale.plugin.read_folder``; one line says which files are not read.

    Raises:
        DataError: no images, an empty class, or a layout that is neither flat nor one sub-folder per class.
    """
    try:
        found = read_folder(folder, is_image, "images")
    except DataError as error:
        if str(error).startswith("no images"):
            raise DataError(f"{error} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})") from None
        raise
    others = [path for split in found.values() for path in split.others]
    if others:
        log.warning(
            "%s: %d of the files are left out, because their names do not end like those of images (first: %s)",
            shown_path(folder),
            len(others),
            shown_path(others[0].relative_to(folder)),
        )
    return {
        name: RawSplit(FileImages(split.paths, folder), split.labels, split.classes) for name, split in found.items()
    }
