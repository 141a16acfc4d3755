"""Video files, decoded by PyAV (FFmpeg): the frames that a player shows, as it shows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from nextscale.plugin import DataError, LimitsConfig, NextscaleError, check_file, in_mode, reading, shown_path
from nextscale_video.readers.geometry import Geometry, geometry
from nextscale_video.readers.rates import Timed, at_rate
from nextscale_video.readers.raw import RawVideo, file_identity
from nextscale_video.readers.whole import check_whole

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer

VIDEO_SUFFIXES = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".3gp", ".avi", ".gif", ".webm", ".mkv", ".flv", ".ogv", ".wmv"),
        *(".ts", ".mts", ".m2ts", ".mpg", ".mpeg"),
    )
)
ENDLESS_SUFFIXES = frozenset((".ts", ".mts", ".m2ts", ".mpg", ".mpeg"))
"""Streams for broadcasting, of which any part is a whole."""
SAME_RATE = 0.01
"""Rates that differ by no more than this share are the same: 24 and 23.976."""
RATE_PACKETS = 1000
"""Frames over which the rate is measured."""
PLAUSIBLE_RATES = (Fraction(1, 100), Fraction(1000))
"""Containers without a rate announce the resolution of their clock instead, such as 90000."""


def video_file(path: Path, source: Path, limits: LimitsConfig) -> RawVideo:
    """A video file inside ``source``."""
    return RawVideo(
        shown_path(path),
        partial(read_file, path, limits=limits),
        partial(frame_rate, path),
        partial(file_identity, path, source),
        path.suffix.lower() in ENDLESS_SUFFIXES,
    )


def read_file(path: Path, fps: float | None = None, limits: LimitsConfig | None = None) -> Iterator[np.ndarray]:
    """Yield the frames of a video file as H W 3 of uint8, in square pixels, upright, on white where transparent.

    Args:
        fps: frames per second to resample to by time stamps; None: the frames as they come.

    Raises:
        NextscaleError: PyAV is not installed.
        DataError: the file is unreadable, too large, damaged, or truncated (some of it is known only at its end).
    """
    with reading(path, "video"):
        frames = _timed(path, limits or LimitsConfig())
        yield from (frame.pixels for frame in (frames if fps is None else at_rate(frames, fps)))


def frame_rate(path: Path) -> float | None:
    """Frames per second, on average; None if the file does not say.

    Where time stamps contradict the header (its rate is often that of the shortest frame), they are right.

    Raises:
        as ``read_file``.
    """
    with reading(path, "video"), _opened(path) as (container, stream):
        rate = _rate(stream)
        packets = (packet for packet in container.demux(stream) if not packet.is_discard)
        stamps = [packet.pts for packet in islice(packets, RATE_PACKETS) if packet.pts is not None]
        lasts = (max(stamps) - min(stamps)) * stream.time_base if len(stamps) > 1 and stream.time_base else 0
        measured = Fraction(len(stamps) - 1) / lasts if lasts else None
        if measured and (rate is None or abs(measured / rate - 1) > SAME_RATE):
            rate = measured if PLAUSIBLE_RATES[0] <= measured <= PLAUSIBLE_RATES[1] else rate
        return None if rate is None else float(rate)


def _rate(stream: VideoStream) -> Fraction | None:
    low, high = PLAUSIBLE_RATES
    found = (stream.average_rate, stream.guessed_rate)
    return next((Fraction(rate) for rate in found if rate and low <= rate <= high), None)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        import av
        from av.stream import Disposition
    except ImportError:
        raise NextscaleError(f"reading {shown_path(path)} needs PyAV: pip install 'nextscale[video]'") from None
    check_file(path)
    # Playlists in a video's clothes must not open anything else.
    with av.open(f"file:{path}", options={"protocol_whitelist": "file"}) as container:
        streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not streams:
            raise DataError(f"{shown_path(path)} has no video stream")
        best = container.streams.best("video")
        yield container, next((stream for stream in streams if stream is best), streams[0])


@dataclass
class _Count:
    """What has been seen of a stream."""

    frames: int = 0
    hidden: int = 0
    """Packets that are decoded for others' sake and never shown: an edit list begins behind them."""


def _timed(path: Path, limits: LimitsConfig) -> Iterator[Timed]:
    with _opened(path) as (container, stream):
        check_whole(path, container.format.name)
        seen, rate, shape, how = _Count(), _rate(stream), None, None
        for packet in container.demux(stream):
            seen.hidden += packet.is_discard
            if packet.is_corrupt and seen.frames:  # before the first frame, a recording may begin within one
                raise DataError(f"video {shown_path(path)} is damaged or truncated after frame {seen.frames - 1}")
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise DataError(f"video {shown_path(path)} is damaged or truncated: frame {seen.frames} is broken")
                if how is None or shape != (frame.height, frame.width):
                    shape = frame.height, frame.width
                    how = _geometry(path, stream, frame, limits)
                start, lasts = _time(frame, seen.frames, rate)
                yield Timed(how.shown(_pixels(frame)), start, start + lasts)
                seen.frames += 1
        _check_count(path, container, stream, seen)


def _geometry(path: Path, stream: VideoStream, frame: VideoFrame, limits: LimitsConfig) -> Geometry:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    how = geometry(
        shown_path(path),
        (frame.height, frame.width),
        stream.sample_aspect_ratio,
        None if matrix is None else bytes(matrix),
    )
    for height, width in ((frame.height, frame.width), how.size):
        if height * width > limits.pixels:
            raise DataError(
                f"frames of {shown_path(path)} have {height} x {width} pixels, more than "
                f"data.limits.pixels={limits.pixels:,}"
            )
    return how


def _time(frame: VideoFrame, number: int, rate: Fraction | None) -> tuple[float, float]:
    """When a frame is shown, and for how long, in seconds. Streams without time stamps run at their rate."""
    pace = float(1 / (rate or Fraction(25)))
    lasts = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else pace
    return (number * pace if frame.time is None else frame.time), lasts


def _pixels(frame: VideoFrame) -> np.ndarray:
    if any(part.is_alpha for part in frame.format.components) or frame.format.name == "pal8":
        return np.asarray(in_mode(Image.fromarray(frame.to_ndarray(format="rgba")), "RGB"))
    return frame.to_ndarray(format="rgb24")


def _check_count(path: Path, container: InputContainer, stream: VideoStream, seen: _Count) -> None:
    """Compare with the number of frames that the header promises, less those that its edit list cuts off."""
    promised = stream.frames
    if "mp4" in container.format.name:
        # Pictures outside the edit list are not in the index, or hidden where others are predicted from them.
        promised = min(promised, len(stream.index_entries)) - seen.hidden
    if seen.frames < promised:
        raise DataError(
            f"video {shown_path(path)} is truncated: only {seen.frames} of its {promised} frames can be decoded"
        )
