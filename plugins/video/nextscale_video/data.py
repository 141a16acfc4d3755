"""Video data: from ``data.source`` to splits whose clips have one shape."""

from __future__ import annotations

import os
import statistics
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from nextscale.plugin import ConditionSpec, DataError, DataSplits, NextscaleWarning, hold_out, shown_path
from nextscale_video.config import VideoDataConfig
from nextscale_video.frames import TooLarge, coloured, in_channels, read
from nextscale_video.moving import open_moving_digits
from nextscale_video.readers import RawSplits, RawVideo, read_source
from nextscale_video.readers.container import SAME_RATE
from nextscale_video.source import VideoSource


@dataclass
class Split:
    """The readable videos of a split: T H W C of uint8 each, what they were read from, and their labels."""

    videos: list[np.ndarray]
    raw: list[RawVideo]
    labels: np.ndarray | None

    def rows(self, chosen: np.ndarray) -> Split:
        labels = None if self.labels is None else self.labels[chosen]
        return Split([self.videos[i] for i in chosen], [self.raw[i] for i in chosen], labels)


def open_videos(config: VideoDataConfig) -> DataSplits:
    """Open the videos that ``config.source`` names, as ``VideoSource`` splits (or ``MovingDigits``).

    If the source has no validation split, a share of the videos, not of their clips, is held out, by class and at least
    one per class. ``description`` is ``{"channels", "frames", "stride", "height", "width", "classes"}``; where videos
    have time stamps also ``fps``, the frames per second of clips, and with ``data.fps`` that, as ``resample``.

    Raises:
        DataError: the source is missing, empty, damaged, inconsistent in size or classes, too short, or too large.
    """
    if config.source == "moving-digits":
        return open_moving_digits(config)
    raw = read_source(config.source, config.limits)
    classes = common_classes(raw, config.source) if config.labels else ()
    splits = load(raw, classes, config)
    _warn_of_others(raw, config.source)
    train = splits["train"]
    rates = _rates(train.raw, config)
    if "validation" not in splits:
        train, splits["validation"] = _held_out(train, len(classes), config)

    _, height, width, channels = train.videos[0].shape

    def source(split: Split, flip: bool = False) -> VideoSource:
        videos = [video.transpose(3, 0, 1, 2) for video in split.videos]
        identities = [video.identity for video in split.raw]
        return VideoSource(videos, split.labels, config.frames, config.stride, flip, config.clips, identities)

    return DataSplits(
        train=source(train, config.flip),
        validation=source(splits["validation"]),
        test=source(splits["test"]) if "test" in splits else None,
        conditions=(ConditionSpec(name="label", size=len(classes), names=classes),) if classes else (),
        description={
            "channels": channels,
            "frames": config.frames,
            "stride": config.stride,
            "height": height,
            "width": width,
            "classes": list(classes),
            **rates,
        },
    )


def common_classes(raw: RawSplits, source: str) -> tuple[str, ...]:
    """The training split's class names, empty without labels. Labels of other splits become positions in them.

    Raises:
        DataError: a split has classes that the training split lacks, or only some splits have classes.
    """
    train = raw["train"]
    for name, split in raw.items():
        if (split.labels is None) != (train.labels is None):
            labelled, flat = ("train", name) if split.labels is None else (name, "train")
            raise DataError(
                f"classes differ between splits of {source}: {labelled} has classes, {flat} has none "
                "(data.labels=false ignores them)"
            )
        more = [each for each in split.classes if each not in train.classes]
        if more:
            raise DataError(
                f"classes differ between splits of {source}: train lacks {', '.join(more[:8])}, which {name} has"
            )
    return train.classes


def load(raw: RawSplits, classes: tuple[str, ...], config: VideoDataConfig) -> dict[str, Split]:
    """Every readable video as T H W C of uint8, all of one size and number of channels; labels are positions in
    ``classes``, if there are any."""
    rows: dict[str, list[int]] = {name: [] for name in raw}
    splits = {name: Split([], [], None) for name in raw}
    left_out: list[str] = []
    first: tuple[RawVideo, np.ndarray] | None = None
    room = config.limits.memory_bytes
    for name, row in _progress([(name, row) for name, split in raw.items() for row in range(len(split.videos))]):
        video, split = raw[name].videos[row], splits[name]
        try:
            frames = _read(video, room, config)
        except TooLarge:
            raise
        except DataError as error:
            if not config.skip_unreadable:
                raise DataError(f"{error} (data.skip_unreadable=true skips such videos)") from None
            left_out.append(video.name)
            continue
        first = first or (video, frames)
        if frames.shape[1:3] != first[1].shape[1:3]:
            raise DataError(_differ(video, frames, *first))
        room -= frames.nbytes
        rows[name].append(row)
        split.videos.append(frames)
        split.raw.append(video)
    if left_out:
        total = sum(len(split.videos) for split in raw.values())
        _warn(f"skipped {len(left_out)} of {total} videos (first: {left_out[0]})")
    for name, split in splits.items():
        if not split.videos:
            raise DataError(f"no readable video in {config.source if len(raw) == 1 else f'{config.source}: {name}'}")
        labels = raw[name].labels
        if classes and labels is not None:
            places = np.array([classes.index(each) for each in raw[name].classes], np.int64)
            split.labels = places[labels[rows[name]]]
    videos = [video for split in splits.values() for video in split.videos]
    channels = config.channels or (3 if any(coloured(video) for video in videos) else 1)
    for split in splits.values():
        split.videos = [in_channels(video, channels) for video in split.videos]
    return splits


def _progress(rows: list[tuple[str, int]]) -> Iterable[tuple[str, int]]:
    console = Console(stderr=True)
    return track(rows, "reading videos", console=console, transient=True, disable=not console.is_terminal)


def _read(video: RawVideo, room: int, config: VideoDataConfig) -> np.ndarray:
    try:
        frames = read(video, config.size, fps=config.fps, room=room)
    except TooLarge as error:
        raise TooLarge(
            f"{config.source} is too large to keep decoded in memory (data.limits.memory_bytes="
            f"{config.limits.memory_bytes:,} are full at {error}): lower data.size, or raise the limit"
        ) from None
    span = (config.frames - 1) * config.stride + 1
    if len(frames) < span:
        rate = "" if config.fps is None else f" at data.fps={config.fps:g}"
        raise DataError(
            f"{video.name} has {len(frames)} frame{'s' * (len(frames) > 1)}{rate}; a clip of data.frames="
            f"{config.frames} at data.stride={config.stride} needs {span}"
        )
    return frames


def _differ(one: RawVideo, here: np.ndarray, other: RawVideo, there: np.ndarray) -> str:
    return (
        f"video sizes differ: {one.name} is {here.shape[1]} x {here.shape[2]}, {other.name} is "
        f"{there.shape[1]} x {there.shape[2]} (height x width); resize them all with data.size, such as "
        f"data.size={min(*here.shape[1:3], *there.shape[1:3])}"
    )


def _held_out(train: Split, classes: int, config: VideoDataConfig) -> tuple[Split, Split]:
    """What is left to train on, and the videos held out."""
    number = len(train.videos)
    share = max(config.validation, classes / number)
    kept, held = hold_out(train.labels, number, min(share, 0.5), config.split_seed)
    if not len(kept) or not len(held):
        raise DataError(
            f"too few videos: {number} in {config.source}; data.validation={config.validation} leaves "
            f"{len(kept)} to train on and {len(held)} to validate with"
        )
    return train.rows(kept), train.rows(held)


def _rates(videos: Sequence[RawVideo], config: VideoDataConfig) -> dict[str, float]:
    """``fps`` of clips, and ``resample`` if videos were: empty if the videos have no time stamps."""
    if config.fps is not None:
        return {"fps": config.fps / config.stride, "resample": config.fps}
    rates = sorted(rate for rate in (video.rate() for video in videos) if rate is not None)
    if not rates:
        return {}
    usual = statistics.mode(rates)
    if rates[-1] > rates[0] * (1 + SAME_RATE):
        _warn(
            f"videos in {config.source} have {rates[0]:g} to {rates[-1]:g} frames per second, and clips take frames as "
            f"they come: data.fps={usual:g} brings them to one rate"
        )
    return {"fps": usual / config.stride}


def _warn_of_others(raw: RawSplits, source: str) -> None:
    """Name what lies beside the videos: a file that was meant to be one must not be missed."""
    others = [path for split in raw.values() for path in split.others]
    if others:
        names = [shown_path(os.path.relpath(path, Path(source).expanduser())) for path in others[:3]]
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        _warn(f"left out of {source}, because they are no videos: {', '.join(names)}{more}")


def _warn(message: str) -> None:
    warnings.warn(message, NextscaleWarning, stacklevel=2)
