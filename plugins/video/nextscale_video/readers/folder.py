"""Folders of videos, and of frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from nextscale.plugin import (
    IMAGE_SUFFIXES,
    DataError,
    FolderSplit,
    LimitsConfig,
    decode_image,
    listing,
    natural_order,
    open_image,
    read_folder,
    reading,
    shown_path,
)
from nextscale_video.readers.container import VIDEO_SUFFIXES, video_file
from nextscale_video.readers.raw import RawSplit, RawSplits, RawVideo, file_identity

FRAME_SUFFIXES = IMAGE_SUFFIXES - VIDEO_SUFFIXES


def read_videos(folder: Path, limits: LimitsConfig) -> RawSplits:
    """List the videos in ``folder``: files or folders of frames, flat or by class, with or without split folders.

    Videos and classes come in the order of their names, numbers in names as numbers: clip 10 after clip 9.

    Raises:
        DataError: no videos, an empty class, or a layout that is neither flat nor one sub-folder per class.
    """
    try:
        found = read_folder(folder, is_video, "videos")
    except DataError as error:
        if holds_frames(folder):
            raise DataError(
                f"{shown_path(folder)} holds the frames of a single video: give the folder that it lies in"
            ) from None
        raise error
    splits = {name: _split(split, folder, limits) for name, split in found.items()}
    splits["train"].others.extend(_hidden(folder))
    return splits


def _split(found: FolderSplit, folder: Path, limits: LimitsConfig) -> RawSplit:
    ranks = np.argsort(sorted(range(len(found.classes)), key=lambda row: _natural(found.classes[row])))
    labels = None if found.labels is None else ranks[found.labels]
    order = sorted(
        range(len(found.paths)),
        key=lambda row: (0 if labels is None else int(labels[row]), _path_order(found.paths[row], folder)),
    )
    videos = [_video(found.paths[row], folder, limits) for row in order]
    others = [*found.others, *(path for row in order for path in _beside_frames(found.paths[row]))]
    if labels is None:
        return RawSplit(videos, others=others)
    return RawSplit(videos, labels[order], tuple(sorted(found.classes, key=_natural)), others)


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    return natural_order(name), name


def _path_order(path: Path, folder: Path) -> list[tuple[list[tuple[int, int, str]], str]]:
    return [_natural(part) for part in path.relative_to(folder).parts]


def is_video(path: Path) -> bool:
    """Whether a path is one video: a file whose name says so, or a folder of frames."""
    return holds_frames(path) if path.is_dir() else path.suffix.lower() in VIDEO_SUFFIXES


def holds_frames(folder: Path) -> bool:
    """Whether a folder is one video, by its frames. A picture beside videos is a thumbnail, and no frame.

    Raises:
        DataError: it holds several pictures, and folders of videos or frames beside them.
    """
    found = listing(folder)
    frames = [path for path in found if _is_frame(path)]
    if not frames or any(not path.is_dir() and path.suffix.lower() in VIDEO_SUFFIXES for path in found):
        return False
    inner = next((path for path in found if path.is_dir() and _holds_any(path)), None)
    if inner is not None and len(frames) > 1:
        raise DataError(
            f"{shown_path(folder)} holds both frames ({frames[0].name}) and a folder of frames or videos "
            f"({inner.name}): keep them apart"
        )
    return inner is None


def _holds_any(folder: Path) -> bool:
    return any(_is_known(name) for _, _, names in os.walk(folder) for name in names)


def _is_known(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES | FRAME_SUFFIXES


def _is_frame(path: Path) -> bool:
    return path.suffix.lower() in FRAME_SUFFIXES and not path.is_dir()


def _beside_frames(path: Path) -> list[Path]:
    return [other for other in listing(path) if not _is_frame(other)] if path.is_dir() else []


def _video(path: Path, source: Path, limits: LimitsConfig) -> RawVideo:
    return frame_folder(path, source, limits) if path.is_dir() else video_file(path, source, limits)


def _hidden(folder: Path) -> list[Path]:
    """Hidden videos and pictures, and hidden folders with some. They are not read, but the user is told."""
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        apart = [name for name in folders if name.startswith((".", "__"))]
        folders[:] = [name for name in folders if name not in apart]
        found += [Path(root, name) for name in apart if _holds_any(Path(root, name))]
        found += [Path(root, name) for name in names if name.startswith(".") and _is_known(name)]
    return found


# Frames.


def frame_folder(folder: Path, source: Path, limits: LimitsConfig) -> RawVideo:
    """The video whose frames are the pictures in a folder inside ``source``. It has no time stamps."""
    return RawVideo(
        shown_path(folder), partial(read_frames, folder, limits=limits), identity=partial(_marks, folder, source)
    )


def read_frames(folder: Path, fps: float | None = None, limits: LimitsConfig | None = None) -> Iterator[np.ndarray]:
    """Yield the images in a folder as H W 3 of uint8, sorted by name (frame 10 after frame 9).

    Raises:
        DataError: a frame is unreadable, too large, or differs in size from the first.
    """
    limits, first = limits or LimitsConfig(), None
    for path in _frames_in(folder):
        frame = _frame(path, limits)
        first = frame.shape if first is None else first
        if frame.shape != first:
            raise DataError(
                f"frame {shown_path(path)} is {_size(frame.shape)}, but the first in its folder is {_size(first)}"
            )
        yield frame


def _frame(path: Path, limits: LimitsConfig) -> np.ndarray:
    with reading(path, "frame"), open_image(path) as image:
        return np.ascontiguousarray(decode_image(image, 3, limits=limits).transpose(1, 2, 0))


def _frames_in(folder: Path) -> list[Path]:
    return sorted(filter(_is_frame, listing(folder)), key=lambda path: _natural(path.name))


def _marks(folder: Path, source: Path) -> list[str]:
    return [file_identity(path, source) for path in _frames_in(folder)]


def _size(shape_HWC: tuple[int, ...]) -> str:
    return f"{shape_HWC[0]} x {shape_HWC[1]}"
