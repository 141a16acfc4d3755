"""Readers of video sources: arrays, video files, and folders of either or of frames."""

from __future__ import annotations

import warnings
from pathlib import Path

from nextscale.plugin import DataError, LimitsConfig, NextscaleWarning, exists, shown_path
from nextscale_video.readers.arrays import read_video_arrays
from nextscale_video.readers.container import VIDEO_SUFFIXES, read_file, video_file
from nextscale_video.readers.folder import frame_folder, holds_frames, read_frames, read_videos
from nextscale_video.readers.raw import RawSplit, RawSplits, RawVideo

__all__ = ["RawSplit", "RawSplits", "RawVideo", "read_file", "read_frames", "read_one", "read_source"]


def read_source(source: str, limits: LimitsConfig | None = None) -> RawSplits:
    """Find out what ``source`` is, and list its videos.

    Raises:
        DataError: the source does not exist, or cannot be read.
    """
    limits, path = limits or LimitsConfig(), _expanded(source)
    if not exists(path):
        raise DataError(
            f"data source {shown_path(source)} does not exist: no such file or folder (built in: moving-digits)"
        )
    found = _found(path, source, limits)
    endless = [video.name for split in found.values() for video in split.videos if video.endless]
    if endless:
        more = f" and {len(endless) - 1} more" if len(endless) > 1 else ""
        message = f"nothing in MPEG streams says how long they are: a cut end may go unnoticed in {endless[0]}{more}"
        warnings.warn(message, NextscaleWarning, stacklevel=2)
    return found


def _found(path: Path, source: str, limits: LimitsConfig) -> RawSplits:
    if path.is_dir():
        return read_videos(path, limits)
    if path.suffix.lower() in (".npz", ".npy"):
        return {"train": read_video_arrays(path, limits)}
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return {"train": RawSplit([video_file(path, path, limits)])}
    raise DataError(
        f"{shown_path(path)} is not a video source: give a folder, an .npz file, an .npy file or a video file"
    )


def read_one(path: Path, limits: LimitsConfig | None = None) -> RawVideo:
    """The single video in a file or a folder of frames.

    Raises:
        DataError: as ``read_source``, or there is not exactly one video.
    """
    path = _expanded(path)
    if exists(path) and path.is_dir() and holds_frames(path):
        return frame_folder(path, path, limits or LimitsConfig())
    videos = [video for split in read_source(str(path), limits).values() for video in split.videos]
    if len(videos) != 1:
        raise DataError(
            f"{shown_path(path)} holds {len(videos)} videos: give a file with one video, or a folder of frames"
        )
    return videos[0]


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~ of a user who does not exist
        return Path(path)
