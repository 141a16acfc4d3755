"""Video files as cameras, editors and sites write them: built with PyAV, and patched where PyAV cannot write it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

UNIT = 1 << 16
PLACES: dict[str, tuple[int, int, int, int]] = {
    "as coded": (1, 0, 0, 1),
    "a quarter clockwise": (0, 1, -1, 0),
    "half": (-1, 0, 0, -1),
    "a quarter counterclockwise": (0, -1, 1, 0),
    "left for right": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "rows for columns": (0, 1, 1, 0),
    "the other diagonal": (0, -1, -1, 0),
}
"""Display matrices (a, b, c, d): what is coded at (x, y) is shown at (a x + c y, b x + d y), moved back into view."""


def shown(frame_HWC: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Place each pixel as the definition of a display matrix says, one by one."""
    a, b, c, d = matrix
    height, width = frame_HWC.shape[:2]
    corners = [(a * x + c * y, b * x + d * y) for x in (0, width - 1) for y in (0, height - 1)]
    left, top = (min(values) for values in zip(*corners, strict=True))
    right, bottom = (max(values) for values in zip(*corners, strict=True))
    out = np.zeros((bottom - top + 1, right - left + 1, 3), frame_HWC.dtype)
    for y in range(height):
        for x in range(width):
            out[b * x + d * y - top, a * x + c * y - left] = frame_HWC[y, x]
    return out


def write(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    rate: int | Fraction = 10,
    starts: Sequence[Fraction] | None = None,
    gop: int = 4,
    pixels: str | None = None,
    container: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Write frames H W 3, without loss where the codec can. ``starts`` are their times in seconds."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    default = {"libx264": "yuv444p", "gif": "rgb8", "ffv1": "bgr0"}
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=rate, options={"crf": "1", **options} if codec == "libx264" else options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels or default.get(codec, "yuv420p")
        stream.codec_context.gop_size = gop
        if starts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format=stream.pix_fmt)
            if starts is not None:
                picture.pts, picture.time_base = int(starts[number] * 1000), Fraction(1, 1000)
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return path


def turn(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Patch the display matrix of an mp4's track header, as phones write it."""
    a, b, c, d = (UNIT * value for value in matrix)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def begin_at(path: Path, ticks: int) -> Path:
    """Patch where an mp4's edit list begins, in ticks of its track, as editors do that cut without coding anew."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4
    assert data[at + 4 : at + 8] == b"\0\0\0\1", "one edit"
    data[at + 12 : at + 16] = struct.pack(">i", ticks)
    path.write_bytes(data)
    return path


def edit_ticks(path: Path) -> int:
    """Where an mp4's edit list begins."""
    data = path.read_bytes()
    return struct.unpack(">i", data[data.index(b"elst") + 16 :][:4])[0]


def widen(path: Path, across: int, down: int) -> Path:
    """Patch the pixel aspect of an mp4 that was written with one."""
    data = bytearray(path.read_bytes())
    at = data.index(b"pasp") + 4
    data[at : at + 8] = struct.pack(">2I", across, down)
    path.write_bytes(data)
    return path


def levels(number: int, height: int = 16, width: int = 24, step: int = 9) -> list[np.ndarray]:
    """Grey frames, each brighter than the one before, so that decoded ones say which they are."""
    return [np.full((height, width, 3), 20 + step * t, np.uint8) for t in range(number)]


def numbers(frames: Sequence[np.ndarray], step: int = 9) -> list[int]:
    """Which of ``levels`` decoded frames are."""
    return [round((float(frame.mean()) - 20) / step) for frame in frames]
