"""Moving digits: scikit-learn's real 8 x 8 digits, each gliding over a dark canvas and bouncing off its border."""

from __future__ import annotations

import numpy as np
import torch

from nextscale.plugin import (
    Batch,
    ConditionSpec,
    DataError,
    DataSplits,
    digits_table,
    fingerprint,
    hold_out,
    sample_seeds,
)
from nextscale_video.config import VideoDataConfig

DIGIT = 8
CANVAS = 16
TEST_SHARE = 0.1
SPEED = (0.4, 1.4)
"""Pixels per frame, drawn uniformly from this range."""
PATHS = 0xD161
"""Separates the paths from everything else drawn from the same seeds."""


class MovingDigits:
    """A ``nextscale.data.SampleSource``: one clip per digit; with seeds, a different path each time.

    Args:
        digits: N 8 8 of floats from 0 to 1.
        labels: N integers, or None.
        side: height and width of the canvas.
        frames, stride: as in ``VideoDataConfig``.
    """

    def __init__(
        self, digits: np.ndarray, labels: np.ndarray | None, side: tuple[int, int], frames: int, stride: int
    ) -> None:
        self.digits, self.labels = digits, labels
        self.side, self.frames, self.stride = side, frames, stride

    def __len__(self) -> int:
        return len(self.digits)

    def fingerprint(self) -> str:
        """16 hex digits that change with the digits, their order, their labels, or the clips' length and size."""
        parts: dict[str, object] = {"digits": self.digits, "clips": (self.side, self.frames, self.stride)}
        return fingerprint(parts if self.labels is None else parts | {"labels": self.labels})

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
        """``samples`` B 1 T H W of float32 in [-1, 1]; ``conditions["label"]`` is the digit, if labelled."""
        drawn = sample_seeds(PATHS, indices.astype(np.uint64) if seeds is None else seeds)
        clips = np.stack([self._clip(self.digits[i], seed) for i, seed in zip(indices, drawn, strict=True)])
        samples = torch.from_numpy(clips[:, None] * np.float32(2) - np.float32(1))
        if self.labels is None:
            return Batch(samples)
        return Batch(samples, {"label": torch.from_numpy(self.labels[indices])})

    def _clip(self, digit: np.ndarray, seed: np.uint64) -> np.ndarray:
        """T H W from 0 to 1; between pixels, the digit is interpolated linearly."""
        draw = np.random.default_rng(int(seed))
        room = np.array(self.side, np.float64) - DIGIT
        start, angle, speed = draw.uniform(0, 1, 2) * room, draw.uniform(0, 2 * np.pi), draw.uniform(*SPEED)
        time = np.arange(self.frames)[:, None] * self.stride
        corner = bounced(start + time * speed * np.array([np.sin(angle), np.cos(angle)]), room)  # T 2
        rows, columns = (_weights(corner[:, axis], size) for axis, size in enumerate(self.side))
        return (rows @ digit @ columns.transpose(0, 2, 1)).astype(np.float32)


def bounced(position: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Reflect positions into 0 .. ``room``."""
    period = np.maximum(2 * room, 1e-9)
    folded = position % period
    return np.minimum(folded, period - folded)


def _weights(corner: np.ndarray, size: int) -> np.ndarray:
    """T size 8: weight of digit row i in pixel row y, if the digit's first row is at ``corner``."""
    distance = np.arange(size)[None, :, None] - corner[:, None, None] - np.arange(DIGIT)[None, None]
    return np.maximum(0, 1 - np.abs(distance))


def open_moving_digits(config: VideoDataConfig) -> DataSplits:
    """Open the moving digits. Digits are split, not clips: a held-out clip shows a digit that was never trained on.

    Raises:
        DataError: the canvas is too small for a digit, or colour or a rate is requested.
    """
    size = config.size or CANVAS
    side = (size, size) if isinstance(size, int) else size
    if min(side) < DIGIT:
        raise DataError(f"data.size={side[0]} x {side[1]} is too small for a digit of {DIGIT} x {DIGIT}")
    if config.channels == 3:
        raise DataError("moving-digits are grey: leave data.channels unset")
    if config.fps is not None:
        raise DataError("moving-digits have no time stamps: leave data.fps unset")
    table = digits_table()
    digits = (table[:, :-1] / 16).reshape(-1, DIGIT, DIGIT).astype(np.float32)
    labels = table[:, -1].astype(np.int64)
    rest, test = hold_out(labels, len(labels), TEST_SHARE, 0)
    kept, held = hold_out(labels[rest], len(rest), config.validation, config.split_seed)
    if not len(held):
        raise DataError(f"data.validation={config.validation} leaves no digit to validate with")

    def source(rows: np.ndarray) -> MovingDigits:
        found = labels[rows] if config.labels else None
        return MovingDigits(digits[rows], found, side, config.frames, config.stride)

    names = tuple(str(digit) for digit in range(10))
    return DataSplits(
        train=source(rest[kept]),
        validation=source(rest[held]),
        test=source(test),
        conditions=(ConditionSpec(name="label", size=10, names=names),) if config.labels else (),
        description={
            "channels": 1,
            "frames": config.frames,
            "height": side[0],
            "width": side[1],
            "classes": list(names) if config.labels else [],
        },
    )
