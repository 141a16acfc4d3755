"""Readers of video sources: arrays, video files, and folders of frames."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from nextscale.plugin import DataError, NextscaleError

VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".avi", ".gif", ".webm", ".mkv"))
FRAME_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"))
VIDEO_KEYS, LABEL_KEYS = ("video", "videos", "x", "arr_0"), ("label", "labels", "y")


@dataclass(frozen=True)
class RawVideo:
    """One video. ``frames()`` gives its frames as they are read, H W C of uint8, C 1 or 3; messages show ``name``."""

    name: str
    frames: Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True)
class RawVideos:
    """``labels`` are positions in ``classes``, one per video, or None."""

    videos: list[RawVideo]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()


def read_source(source: str) -> RawVideos:
    """Find out what ``source`` is, and list its videos.

    Raises:
        DataError: the source does not exist, or cannot be read.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"data source {source} does not exist: no such file or folder (built in: moving-digits)")
    if path.is_dir():
        return read_folder(path)
    if path.suffix in (".npz", ".npy"):
        return read_arrays(path)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return RawVideos([_file(path)])
    raise DataError(f"{path} is not a video source: give a folder, an .npz file, an .npy file or a video file")


def read_one(path: Path) -> RawVideo:
    """The single video in a file or a folder of frames.

    Raises:
        DataError: as ``read_source``, or there is not exactly one video.
    """
    if path.is_dir() and _frames_in(path):
        return _folder(path)
    videos = read_source(str(path)).videos
    if len(videos) != 1:
        raise DataError(f"{path} holds {len(videos)} videos: give a file with one video, or a folder of frames")
    return videos[0]


# Arrays.


def read_arrays(path: Path) -> RawVideos:
    """Read ``video`` (``videos``, ``x``) N T H W [C] of uint8, ``label`` (``labels``, ``y``) N and ``classes``; an .npy
    file holds only the videos.

    Raises:
        DataError: the file is unreadable or has no videos, or arrays are of the wrong type, shape, range or count.
    """
    try:
        found: Any = np.load(path, allow_pickle=False)
        arrays = {"video": found} if isinstance(found, np.ndarray) else {key: found[key] for key in _known(found)}
    except (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    key = next((key for key in VIDEO_KEYS if key in arrays), None)
    if key is None:
        raise DataError(f"{path} holds no videos: expected an array named one of {', '.join(VIDEO_KEYS[:-1])}")
    video = arrays[key][..., None] if arrays[key].ndim == 4 else arrays[key]
    if video.ndim != 5 or video.shape[-1] not in (1, 3) or video.dtype != np.uint8:
        shape = " x ".join(map(str, arrays[key].shape))
        raise DataError(
            f"{path}: {key} must be uint8, N T H W or N T H W C with 1 or 3 channels, not {video.dtype} {shape}"
        )
    videos = [RawVideo(f"{path}: {key} {i}", partial(lambda one: one, video[i])) for i in range(len(video))]
    label_key = next((key for key in LABEL_KEYS if key in arrays), None)
    if label_key is None:
        return RawVideos(videos)
    labels = arrays[label_key]
    if labels.dtype.kind not in "iu" or labels.shape != (len(video),) or (labels.size and labels.min() < 0):
        raise DataError(f"{path}: {label_key} must be {len(video)} integers from 0 up, one per video")
    highest = int(labels.max(initial=0))
    names = arrays.get("classes", np.arange(highest + 1))
    if names.ndim != 1 or len(names) <= highest:
        raise DataError(f"{path}: classes has {names.size} names, but {label_key} goes up to {highest}")
    return RawVideos(videos, labels.astype(np.int64), tuple(str(name) for name in names))


def _known(archive: Any) -> list[str]:
    return [key for key in archive.files if key in (*VIDEO_KEYS, *LABEL_KEYS, "classes")]


# Folders.


def read_folder(folder: Path) -> RawVideos:
    """List the videos in ``folder``, sorted by name: files or folders of frames, flat or in one sub-folder per class.

    Raises:
        DataError: no videos, an empty class, or a layout that is neither flat nor one sub-folder per class.
    """
    here, folders = _videos_in(folder), [path for path in _listing(folder) if path.is_dir()]
    per_class = {path.name: _videos_in(path) for path in folders if not _frames_in(path)}
    if here and any(per_class.values()):
        name = next(name for name, found in per_class.items() if found)
        raise DataError(f"{folder} holds both videos ({here[0].name}) and folders of videos ({name}): use only one")
    if here:
        return RawVideos(here)
    if not any(per_class.values()):
        raise DataError(
            f"no videos in {folder} (looked for {', '.join(sorted(VIDEO_SUFFIXES))}, and for folders of frames)"
        )
    empty = next((name for name, found in per_class.items() if not found), None)
    if empty is not None:
        raise DataError(f"class folder {folder / empty} holds no videos: remove it, or fill it")
    labels = np.repeat(np.arange(len(per_class)), [len(found) for found in per_class.values()])
    return RawVideos([video for found in per_class.values() for video in found], labels, tuple(per_class))


def _listing(folder: Path) -> list[Path]:
    """Entries sorted by name, with numbers compared as numbers: frame 10 is after frame 9, class 10 after class 9."""
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith((".", "__"))]
    except OSError as error:
        raise DataError(f"cannot read folder {folder}: {error.strerror}") from None
    return sorted(found, key=lambda path: (_natural(path.name), path.name))


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _frames_in(folder: Path) -> list[Path]:
    return [path for path in _listing(folder) if path.suffix.lower() in FRAME_SUFFIXES]


def _videos_in(folder: Path) -> list[RawVideo]:
    videos = []
    for path in _listing(folder):
        if path.is_dir() and _frames_in(path):
            videos.append(_folder(path))
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            videos.append(_file(path))
    return videos


def _file(path: Path) -> RawVideo:
    return RawVideo(str(path), partial(read_file, path))


def _folder(path: Path) -> RawVideo:
    return RawVideo(str(path), partial(read_frames, path))


def read_frames(folder: Path) -> Iterator[np.ndarray]:
    """Yield the images in a folder as H W 3 of uint8, sorted by name (frame 10 after frame 9).

    Raises:
        DataError: a frame is unreadable, or differs in size from the first.
    """
    first = None
    for path in _frames_in(folder):
        try:
            with Image.open(path) as image:
                frame = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except Exception as error:  # a damaged file may raise anything in Pillow
            raise DataError(f"cannot read frame {path}: {_reason(error)}") from None
        first = frame.shape if first is None else first
        if frame.shape != first:
            raise DataError(f"frame {path} is {_size(frame.shape)}, but the first in its folder is {_size(first)}")
        yield frame


def read_file(path: Path) -> Iterator[np.ndarray]:
    """Yield the frames of a video file, decoded by PyAV, as H W 3 of uint8.

    Raises:
        NextscaleError: PyAV is not installed.
        DataError: the file is unreadable, or truncated (raised once all frames are read).
    """
    try:
        import av
    except ImportError:
        raise NextscaleError(f"reading {path} needs PyAV: pip install 'nextscale[video]'") from None
    read = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} has no video stream")
            stream = container.streams.video[0]
            for frame in container.decode(stream):
                yield frame.to_ndarray(format="rgb24")
                read += 1
            promised = stream.frames
    except DataError:
        raise
    except Exception as error:  # damaged files raise many different FFmpeg errors
        raise DataError(f"cannot read video {path}: {_reason(error)}") from None
    if read < promised:
        raise DataError(f"video {path} is truncated: only {read} of its {promised} frames can be decoded")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _size(shape_HWC: tuple[int, ...]) -> str:
    return f"{shape_HWC[0]} x {shape_HWC[1]}"
