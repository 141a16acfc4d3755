"""Resampling a video to a number of frames per second, by its time stamps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-3
"""Seconds by which a time stamp may be late and still count: containers round to milliseconds."""


@dataclass(frozen=True)
class Timed:
    """A frame that is shown from ``start`` until the next one's, the last until ``end``; both in seconds."""

    pixels: np.ndarray
    start: float
    end: float


def at_rate(frames: Iterable[Timed], fps: float) -> Iterator[Timed]:
    """What a player shows 0, 1, 2 ... / ``fps`` seconds after the first frame: the latest frame that has started."""
    held, begin, ticks = None, 0.0, 0

    def due(until: float) -> Iterator[Timed]:
        nonlocal ticks
        while held is not None and begin + ticks / fps < until - ROUNDING:
            yield Timed(held.pixels, begin + ticks / fps, begin + (ticks + 1) / fps)
            ticks += 1

    for frame in frames:
        if held is None:
            begin = frame.start
        yield from due(frame.start)
        held = frame
    if held is not None:
        yield from due(held.end)
