"""Videos in .npz and .npy files."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from nextscale.plugin import DataError, LimitsConfig, array_names, as_classes, fingerprint, read_arrays, shown_path
from nextscale_video.readers.container import PLAUSIBLE_RATES
from nextscale_video.readers.rates import Timed, at_rate
from nextscale_video.readers.raw import RawSplit, RawVideo

VIDEO_KEYS, LABEL_KEYS = ("video", "videos", "clips", "x", "arr_0"), ("label", "labels", "y")


def read_video_arrays(path: Path, limits: LimitsConfig) -> RawSplit:
    """Read ``video`` (``videos``, ``x``) N T H W [C] of uint8, ``label`` (``labels``, ``y``) N, ``classes`` and
    ``fps``, the frames per second of all videos; an .npy file holds only the videos.

    Raises:
        DataError: the file is unreadable or has no videos, or arrays are of the wrong type, shape, range or count.
    """
    known = (*VIDEO_KEYS, *LABEL_KEYS, "classes", "fps", "")
    arrays = read_arrays(path, lambda name: name in known, limits)
    key = next((key for key in (*VIDEO_KEYS, "") if key in arrays), None)
    if key is None:
        raise DataError(
            f"{shown_path(path)} holds no videos: expected an array named one of {', '.join(VIDEO_KEYS[:-1])}, "
            f"found {', '.join(array_names(path)[:8]) or 'none'}"
        )
    video, called = _checked(arrays[key], shown_path(path), key or "the array")
    rate = _rate(arrays["fps"], f"{shown_path(path)}: fps") if "fps" in arrays else None
    videos = [
        RawVideo(f"{called} {i}", partial(_frames, one, rate), partial(_same, rate), partial(_content, one))
        for i, one in enumerate(video)
    ]
    label_key = next((key for key in LABEL_KEYS if key in arrays), None)
    if label_key is None:
        return RawSplit(videos)
    where = f"{shown_path(path)}: {label_key}"
    labels = arrays[label_key]
    if labels.shape != (len(video),):
        raise DataError(f"{where} must be {len(video)} integers or texts, one per video, not of shape {labels.shape}")
    return RawSplit(videos, *as_classes(labels, where, arrays.get("classes"), limits))


def _checked(array: np.ndarray, path: str, key: str) -> tuple[np.ndarray, str]:
    """N T H W C, and what messages call it."""
    shape, called = " x ".join(map(str, array.shape)), f"{path}: {key}"
    video = array[..., None] if array.ndim == 4 else array
    if video.ndim != 5 or video.shape[-1] not in (1, 3) or video.dtype != np.uint8:
        raise DataError(
            f"{called} must be uint8, N T H W or N T H W C with 1 or 3 channels, not {array.dtype} "
            f"{shape or 'without axes'}"
        )
    if 0 in video.shape:
        empty = ("videos", "frames", "rows", "columns")[video.shape.index(0)]
        raise DataError(f"{called} of {shape} holds no {empty}")
    return video, called


def _rate(array: np.ndarray, where: str) -> float:
    low, high = map(float, PLAUSIBLE_RATES)
    if array.size != 1 or array.dtype.kind not in "iuf" or not low <= float(array.reshape(())) <= high:
        raise DataError(f"{where} should be one number of frames per second, from {low:g} to {high:g}")
    return float(array.reshape(()))


def _same(rate: float | None) -> float | None:
    return rate


def _frames(video_THWC: np.ndarray, rate: float | None, fps: float | None) -> Iterable[np.ndarray]:
    if fps is None or rate is None:
        return video_THWC
    timed = (Timed(frame, number / rate, (number + 1) / rate) for number, frame in enumerate(video_THWC))
    return (frame.pixels for frame in at_rate(timed, fps))


def _content(video_THWC: np.ndarray) -> str:
    return fingerprint({"": video_THWC})
