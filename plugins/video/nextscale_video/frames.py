"""One video as an array: read frame by frame, resized, and brought to one number of channels."""

from __future__ import annotations

from itertools import islice

import numpy as np
from PIL import Image, ImageOps

from nextscale.plugin import DataError
from nextscale_video.readers import RawVideo

GREY_TOLERANCE = 3
"""A video whose channels differ by no more than this is grey: decoding rounds."""


class TooLarge(DataError):
    """A video does not fit into the room that is left."""


def read(
    video: RawVideo,
    size: int | tuple[int, int] | None = None,
    stride: int = 1,
    most: int | None = None,
    room: int | None = None,
    fps: float | None = None,
) -> np.ndarray:
    """Read T H W C of uint8, resizing each frame to ``size`` as it is read.

    Args:
        size: as ``VideoDataConfig.size``.
        stride: take one frame out of this many.
        most: stop after this many frames.
        room: most bytes.
        fps: as ``VideoDataConfig.fps``.

    Raises:
        TooLarge: the video takes more than ``room``. It is read no further.
        DataError: the video has no frames, changes its size, has no time stamps for ``fps``, or cannot be read.
    """
    if fps is not None and video.rate() is None:
        raise DataError(f"data.fps={fps:g} needs time stamps, and {video.name} has none: leave data.fps unset")
    found, stop = video.frames(fps), None if most is None else (most - 1) * stride + 1
    if isinstance(found, np.ndarray) and len(found) and size in (None, found.shape[1:3]):
        taken = found[:stop:stride]  # already in memory
        if room is not None and taken.nbytes > room:
            raise TooLarge(video.name)
        return taken
    frames: list[np.ndarray] = []
    held = 0
    for number, frame in enumerate(islice(found, 0, stop, stride)):
        frames.append(resized(frame, size))
        held += frames[-1].nbytes
        if room is not None and held > room:
            raise TooLarge(f"{video.name}, frame {number * stride}")
        if frames[-1].shape != frames[0].shape:
            (height, width, _), (rows, columns, _) = frames[0].shape, frames[-1].shape
            raise DataError(
                f"{video.name} changes its size: frame {number * stride} is {rows} x {columns}, the first "
                f"{height} x {width} (height x width); data.size brings them to one"
            )
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


def coloured(frames_THWC: np.ndarray) -> bool:
    """Whether there is colour in T H W C, beyond what decoding rounds."""
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
