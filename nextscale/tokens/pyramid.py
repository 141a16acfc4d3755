"""Scales, schedules and token pyramids: the shape of a coarse-to-fine description.

Shape letters, here and everywhere: B batch, L tokens in all scales, K scales, V codes, C channels, D model width,
H heads, N grid axes. A name such as ``x_BLD`` states the tensor's shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from nextscale.device import to_device


@dataclass(frozen=True)
class Scale:
    """One prediction block: ``shape`` is its grid (``(h, w)``, ``(t,)``, ...), or ``(n,)`` for n tokens of a set."""

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.shape or any(axis < 1 for axis in self.shape):
            raise ValueError(f"a scale needs at least one axis and positive sizes, got {self.shape}")

    @property
    def length(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Schedule:
    """The scales of a sample, coarsest first. Immutable and hashable. A schedule belongs to a batch, not to a model."""

    scales: tuple[Scale, ...]

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("a schedule needs at least one scale")

    @classmethod
    def of(cls, shapes: Sequence[Sequence[int]]) -> Schedule:
        """``Schedule.of([(1, 1), (2, 2)])``"""
        return cls(tuple(Scale(tuple(int(axis) for axis in shape)) for shape in shapes))

    @classmethod
    def grid(cls, finest: Sequence[int], sides: Sequence[int | Sequence[int]]) -> Schedule:
        """Grids that grow to ``finest`` and keep its aspect ratio.

        ``sides`` are the lengths of the longest axis, coarsest first, relative to the last entry. VAR's
        ``1 2 3 4 5 6 8 10 13 16`` gives exactly these sides on a 16 x 16 latent; on a 24 x 32 latent every side
        doubles, and the first axis follows at 3/4. A repeated side makes another pass over the same grid. If axes grow
        differently, each entry lists the lengths of all axes: ``(1, 1, 1) (1, 2, 2) (2, 4, 4)``.

        Raises:
            ValueError: ``sides`` is empty, not positive, or shrinks.
        """
        lengths = [[side] * len(finest) if isinstance(side, int) else list(side) for side in sides]
        columns = list(zip(*lengths, strict=True))
        if not lengths or min(map(min, lengths)) < 1 or any(b < a for axis in columns for a, b in pairwise(axis)):
            raise ValueError(f"scales must be positive and must not shrink, got {list(sides)}")
        last = lengths[-1]
        shapes = [
            [max(1, math.floor(size * side / end + 0.5)) for size, side, end in zip(finest, row, last, strict=True)]
            for row in lengths
        ]
        return cls.of(shapes)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        return tuple(scale.length for scale in self.scales)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each scale begins on the packed axis L: K + 1 entries, of which the last is L."""
        return tuple(accumulate(self.lengths, initial=0))

    @property
    def length(self) -> int:
        """L, the number of tokens in all scales."""
        return self.offsets[-1]

    def __len__(self) -> int:
        return len(self.scales)

    def span(self, k: int) -> slice:
        """The slice of the packed axis that scale k fills."""
        return slice(self.offsets[k], self.offsets[k + 1])

    @property
    def shapes(self) -> str:
        """For people: ``1x1 2x2 3x3``. More than three equal scales in a row are counted: ``49 times 1x1``."""
        runs = [(shape, len(list(same))) for shape, same in groupby("x".join(map(str, s.shape)) for s in self.scales)]
        return " ".join(f"{count} times {shape}" if count > 3 else " ".join([shape] * count) for shape, count in runs)

    def scale_ids(self, device: torch.device | str = "cpu") -> Tensor:
        """L integers: the scale that each token belongs to."""
        return torch.repeat_interleave(torch.arange(len(self)), torch.tensor(self.lengths)).to(device)

    def coordinates(self, k: int, device: torch.device | str = "cpu") -> Tensor:
        """L_k N: the centres of scale k's cells, measured in cells of the finest grid.

        Tokens of different scales that cover the same place therefore have the same coordinates.
        """
        finest, shape = self.scales[-1].shape, self.scales[k].shape
        axes = [(torch.arange(n, device=device) + 0.5) * (m / n) for n, m in zip(shape, finest, strict=True)]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))


@dataclass
class TokenPyramid:
    """The tokens of all scales of a batch, packed along L.

    ``tokens`` is B L (codes) or B L *token_shape; ``mask`` is B L booleans, False on padding, or None if every sample
    fills the schedule.
    """

    tokens: Tensor
    schedule: Schedule
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens.shape[1] != self.schedule.length:
            raise ValueError(f"{self.tokens.shape[1]} tokens do not fit a schedule of {self.schedule.length}")

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device | str) -> TokenPyramid:
        mask = None if self.mask is None else to_device(self.mask, device)
        return TokenPyramid(to_device(self.tokens, device), self.schedule, mask)

    def scale(self, k: int) -> Tensor:
        """B L_k: the tokens of scale k."""
        return self.tokens[:, self.schedule.span(k)]

    @classmethod
    def pack(cls, scales: Sequence[Tensor], schedule: Schedule, mask: Tensor | None = None) -> TokenPyramid:
        """A pyramid from one tensor per scale, each B L_k."""
        return cls(torch.cat(list(scales), 1), schedule, mask)
