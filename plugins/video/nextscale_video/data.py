"""Video data: from ``data.source`` to splits whose clips have one shape."""

from __future__ import annotations

import logging
from itertools import islice

import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from nextscale.plugin import ConditionSpec, DataError, DataSplits, hold_out
from nextscale_video.config import VideoDataConfig
from nextscale_video.moving import open_moving_digits
from nextscale_video.readers import RawVideo, RawVideos, read_source
from nextscale_video.source import VideoSource

log = logging.getLogger("nextscale.video")

MEMORY_LIMIT = 8 * 2**30
"""Most bytes of decoded video. All of it is kept in memory; clips are not read from disk one by one."""
GREY_TOLERANCE = 3
"""A video whose channels differ by no more than this is grey: decoding rounds."""


def open_videos(config: VideoDataConfig) -> DataSplits:
    """Open the videos that ``config.source`` names, as ``VideoSource`` splits (or ``MovingDigits``).

    A share of the videos, not of their clips, is held out, by class and at least one per class. ``description`` is
    ``{"channels", "frames", "stride", "height", "width", "classes"}``.

    Raises:
        DataError: the source is missing, empty, damaged, inconsistent in size, too short, or too large.
    """
    if config.source == "moving-digits":
        return open_moving_digits(config)
    raw = read_source(config.source)
    videos, rows = load(raw, config)
    labels = raw.labels[rows] if raw.labels is not None and config.labels else None
    classes = raw.classes if labels is not None else ()
    share = max(config.validation, len(classes) / len(videos))
    kept, held = hold_out(labels, len(videos), min(share, 0.5), config.split_seed)
    if not len(kept) or not len(held):
        raise DataError(
            f"too few videos: {len(videos)} in {config.source}; data.validation={config.validation} leaves "
            f"{len(kept)} to train on and {len(held)} to validate with"
        )

    def source(chosen: np.ndarray, flip: bool) -> VideoSource:
        found = None if labels is None else labels[chosen]
        return VideoSource([videos[i] for i in chosen], found, config.frames, config.stride, flip, config.clips)

    channels, _, height, width = videos[0].shape
    return DataSplits(
        train=source(kept, config.flip),
        validation=source(held, False),
        test=None,
        conditions=(ConditionSpec(name="label", size=len(classes), names=classes),) if classes else (),
        description={
            "channels": channels,
            "frames": config.frames,
            "stride": config.stride,
            "height": height,
            "width": width,
            "classes": list(classes),
        },
    )


def load(raw: RawVideos, config: VideoDataConfig) -> tuple[list[np.ndarray], np.ndarray]:
    """Every readable video as C T H W of uint8 of one size, and their positions in ``raw``."""
    span = (config.frames - 1) * config.stride + 1
    videos: list[np.ndarray] = []
    rows: list[int] = []
    left_out: list[str] = []
    total = 0
    console = Console(stderr=True)
    for row, video in enumerate(
        track(raw.videos, "reading videos", console=console, transient=True, disable=not console.is_terminal)
    ):
        try:
            frames = read(video, config.size, room=MEMORY_LIMIT - total)
            if len(frames) < span:
                raise DataError(
                    f"{video.name} has {len(frames)} frames; a clip of data.frames={config.frames} at "
                    f"data.stride={config.stride} needs {span}"
                )
        except DataError as error:
            if not config.skip_unreadable:
                raise DataError(f"{error} (data.skip_unreadable=true skips such videos)") from None
            left_out.append(video.name)
            continue
        if videos and frames.shape[1:3] != videos[0].shape[1:3]:
            raise DataError(_differ(video, frames, raw.videos[rows[0]], videos[0]))
        total += frames.nbytes
        if total > MEMORY_LIMIT:
            raise DataError(
                f"{config.source} is too large to keep decoded in memory ({MEMORY_LIMIT >> 30} GiB): lower data.size"
            )
        videos.append(frames)
        rows.append(row)
    if not videos:
        raise DataError(f"no readable video in {config.source}")
    if left_out:
        log.warning("skipped %d of %d videos (first: %s)", len(left_out), len(raw.videos), left_out[0])
    channels = config.channels or (3 if any(_coloured(video) for video in videos) else 1)
    return [in_channels(video, channels).transpose(3, 0, 1, 2) for video in videos], np.array(rows)


def _differ(one: RawVideo, here: np.ndarray, other: RawVideo, there: np.ndarray) -> str:
    return (
        f"video sizes differ: {one.name} is {here.shape[1]} x {here.shape[2]}, {other.name} is "
        f"{there.shape[1]} x {there.shape[2]} (height x width); resize them all with data.size, such as "
        f"data.size={min(*here.shape[1:3], *there.shape[1:3])}"
    )


def read(
    video: RawVideo,
    size: int | tuple[int, int] | None = None,
    stride: int = 1,
    most: int | None = None,
    room: int | None = None,
) -> np.ndarray:
    """Read T H W C of uint8, resizing each frame to ``size`` as it is read.

    Args:
        size: as ``VideoDataConfig.size``.
        stride: take one frame out of this many.
        most: stop after this many frames.
        room: stop after this many bytes; the frame that exceeds them is the last.

    Raises:
        DataError: the video has no frames, or cannot be read.
    """
    found, stop = video.frames(), None if most is None else (most - 1) * stride + 1
    if isinstance(found, np.ndarray) and len(found) and size in (None, found.shape[1:3]):
        return found[:stop:stride]  # already in memory
    frames: list[np.ndarray] = []
    held = 0
    for frame in islice(found, 0, stop, stride):
        frames.append(resized(frame, size))
        held += frames[-1].nbytes
        if room is not None and held > room:
            break
    if not frames:
        raise DataError(f"{video.name} has no frames")
    return np.stack(frames)


def resized(frame_HWC: np.ndarray, size: int | tuple[int, int] | None) -> np.ndarray:
    """Resize the short side (bicubic, antialiased), then crop; unchanged if ``size`` is None."""
    wanted = (size, size) if isinstance(size, int) else size
    if wanted is None or frame_HWC.shape[:2] == wanted:
        return frame_HWC
    image = Image.fromarray(frame_HWC[..., 0] if frame_HWC.shape[-1] == 1 else frame_HWC)
    pixels = np.asarray(ImageOps.fit(image, (wanted[1], wanted[0]), Image.Resampling.BICUBIC))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _coloured(frames_THWC: np.ndarray) -> bool:
    if frames_THWC.shape[-1] == 1:
        return False
    red = frames_THWC[..., 0].astype(np.int16)
    return any(int(np.abs(frames_THWC[..., c] - red).max()) > GREY_TOLERANCE for c in (1, 2))


def in_channels(frames_THWC: np.ndarray, channels: int) -> np.ndarray:
    """Convert to T H W ``channels`` of uint8: to grey by ITU-R 601-2 luma, to colour by repeating the channel."""
    have = frames_THWC.shape[-1]
    if have == channels:
        return frames_THWC
    if channels == 3:
        return np.repeat(frames_THWC, 3, -1)
    grey = frames_THWC @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None]
