"""Whether a file is as long as its own structure says. FFmpeg takes half a file of these formats for a whole one."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO

from nextscale.plugin import DataError, shown_path

SEGMENT, CLUSTER = 0x18538067, 0x1F43B675


def check_whole(path: Path, container: str) -> None:
    """Raise ``DataError`` if the file ends before its structure does.

    Args:
        container: FFmpeg's name of the format. Others than Matroska, MP4, GIF and ASF (wmv) pass: their decoders tell.
    """
    known: dict[str, Callable[[IO[bytes], int], int]] = {
        "matroska": _matroska_end,
        "mp4": _boxes_end,
        "gif": _gif_end,
        "asf": _asf_end,
    }
    find_end = next((find_end for name, find_end in known.items() if name in container), None)
    if find_end is None:
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        end = find_end(file, size)
    if end > size:
        raise DataError(f"video {shown_path(path)} is truncated: of at least {end:,} bytes, {size:,} are there")


def _matroska_end(file: IO[bytes], size: int) -> int:
    """Where the last element ends: of the segment's size where it says so, else of its parts (a live recording)."""
    at = 0
    while at < size:
        file.seek(at)
        name, length = _variable(file, keep_marker=True), _variable(file)
        if name is None or length is None:
            return size + 1
        if length >= 0:
            at = file.tell() + length
        elif name in (SEGMENT, CLUSTER):
            at = file.tell()  # of unknown size: go on with what is inside
        else:
            return size
    return at


def _variable(file: IO[bytes], keep_marker: bool = False) -> int | None:
    """An EBML number of variable length; -1 where all bits say that it is unknown, None at the end of the file."""
    first = file.read(1)
    if not first or first == b"\0":
        return None
    more = 8 - first[0].bit_length()
    rest = file.read(more)
    if len(rest) < more:
        return None
    marker = 1 << (7 * (more + 1))
    value = int.from_bytes(first + rest, "big")
    if keep_marker:
        return value
    return -1 if value - marker == marker - 1 else value - marker


def _boxes_end(file: IO[bytes], size: int) -> int:
    """Where the last box of an MP4 or QuickTime file ends."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return size if not head.strip(b"\0") else at + 8  # QuickTime may end with four zeros
        length = struct.unpack(">I", head[:4])[0]
        if length == 1:
            length = struct.unpack(">Q", head[8:16])[0] if len(head) == 16 else 16
        if length < 8:
            return size  # 0: to the end of the file; else no box, which the decoder may judge
        at += length
    return at


def _asf_end(file: IO[bytes], size: int) -> int:
    """Where the last object of an ASF file ends; each begins with 16 bytes that name it and 8 of its size."""
    at = 0
    while at < size:
        file.seek(at + 16)
        length = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))[0]
        if length < 24:
            return size  # no object, which the decoder may judge
        at += length
    return at


def _gif_end(file: IO[bytes], size: int) -> int:
    """Walk a GIF's blocks up to its trailer. What follows that does not matter."""
    head = file.read(13)
    file.seek(_palette(head[10:11]), 1)
    while (kind := file.read(1)) != b";":
        if kind == b"!":  # an extension: its kind, then data
            file.seek(1, 1)
        elif kind == b",":  # a picture: place and size, perhaps a palette, the code size, then data
            file.seek(_palette(file.read(9)[8:]) + 1, 1)
        else:
            return size if kind else size + 1  # no block, which the decoder may judge
        while (length := file.read(1)) not in (b"", b"\0"):
            file.seek(length[0], 1)
    return size


def _palette(flags: bytes) -> int:
    """Bytes of the palette that is announced by a byte of flags."""
    return 3 << (flags[0] % 8 + 1) if flags and flags[0] & 0x80 else 0
