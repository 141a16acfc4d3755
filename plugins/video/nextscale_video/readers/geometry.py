"""How a player shows coded frames: in square pixels, turned and mirrored as the container's display matrix says."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image

from nextscale.plugin import DataError

STRAIGHT = 0.02
"""Largest share of a display matrix's entries beside its axes: about one degree, which players take for none."""


@dataclass(frozen=True)
class Geometry:
    """Args:
    square: height and width in square pixels, before turning.
    transposed: rows become columns; the axes are flipped after that.
    flipped: whether rows, and columns, are shown in reverse.
    """

    square: tuple[int, int]
    transposed: bool = False
    flipped: tuple[bool, bool] = (False, False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as shown."""
        height, width = self.square
        return (width, height) if self.transposed else (height, width)

    def shown(self, frame_HWC: np.ndarray) -> np.ndarray:
        if frame_HWC.shape[:2] != self.square:
            image = Image.fromarray(frame_HWC).resize((self.square[1], self.square[0]), Image.Resampling.BICUBIC)
            frame_HWC = np.asarray(image)
        if self.transposed:
            frame_HWC = frame_HWC.transpose(1, 0, 2)
        rows, columns = (-1 if reverse else 1 for reverse in self.flipped)
        return np.ascontiguousarray(frame_HWC[::rows, ::columns])


def geometry(name: str, coded: tuple[int, int], aspect: Fraction | None, matrix: bytes | None) -> Geometry:
    """How frames are shown.

    Args:
        coded: height and width in coded pixels.
        aspect: width of a coded pixel divided by its height; None or 0 if unknown, which means square. The height stays
            as it is, as in FFmpeg's player.
        matrix: FFmpeg's display matrix: nine native 32-bit integers, which take (x, y) to (a x + c y, b x + d y).

    Raises:
        DataError: it is turned by something other than quarters of a circle.
    """
    height, width = coded
    square = height, max(1, round(width * aspect)) if aspect and aspect > 0 else width
    if matrix is None or len(matrix) < 36:
        return Geometry(square)
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix[:36])
    straight, across = abs(a) + abs(d), abs(b) + abs(c)
    if not (straight or across):
        return Geometry(square)
    if min(straight, across) > STRAIGHT * (straight + across):
        raise DataError(
            f"video {name} is shown turned by an angle that is no multiple of 90 degrees: turn it with another program"
        )
    if across > straight:
        return Geometry(square, True, (b < 0, c < 0))
    return Geometry(square, False, (d < 0, a < 0))
