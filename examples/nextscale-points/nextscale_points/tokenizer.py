"""A set of points, coarse to fine: at every scale, the cell of each point is halved along every axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nextscale.plugin import Codes, MultiscaleTokenizer, ScaleInput, Schedule, TokenPyramid


@dataclass(frozen=True)
class PointsState:
    """``cells`` B P D: integers below 2^k after k scales, sorted along the space-filling Z-order curve."""

    cells: Tensor
    level: int
    schedule: Schedule


class PointsTokenizer(MultiscaleTokenizer):
    """A token says which of the 2^D parts of its cell a point lies in. No weights; exact to within a finest cell.

    Points are a set, so they are described in Z-order. The rank of a point among those of its cell then tells which
    part it is likely in: of two points in a cell, the first is in the lower part. So tokens can be drawn side by side.
    """

    def __init__(self, num_points: int, axes: int, levels: int) -> None:
        super().__init__()
        self.axes, self.levels, self.feature_dim = axes, levels, axes + 3
        self.token_space = Codes(2**axes)
        self._schedule = Schedule.of([(num_points,)] * levels)

    def schedule(self) -> Schedule:
        return self._schedule

    def encode(self, samples: Tensor) -> TokenPyramid:
        cells = ((samples + 1) / 2 * 2**self.levels).long().clamp(0, 2**self.levels - 1)
        cells = sort_cells(cells, self.levels)
        parts = [(cells >> (self.levels - 1 - k)) & 1 for k in range(self.levels)]
        weights = 2 ** torch.arange(self.axes, device=cells.device).flip(0)
        return TokenPyramid.pack([(part * weights).sum(-1) for part in parts], self._schedule)

    def initial_state(
        self, num_samples: int, conditions: Mapping[str, Tensor] | None = None, schedule: Schedule | None = None
    ) -> PointsState:
        schedule = schedule or self._schedule
        cells = torch.zeros(num_samples, schedule.lengths[0], self.axes, dtype=torch.long, device=self.device)
        return PointsState(cells, 0, schedule)

    def scale_input(self, state: PointsState, k: int) -> ScaleInput:
        """Where each cell lies, how many points it holds, and the rank of the point among them."""
        number, device = state.cells.shape[1], state.cells.device
        same = (state.cells[:, :, None] == state.cells[:, None]).all(-1)
        count = same.sum(2).float()
        rank = same.tril(-1).sum(2).float()
        facts = torch.stack([(rank + 0.5) / count, count / number, (count == 1).float()], -1)
        return ScaleInput(
            num_samples=len(state.cells),
            features=torch.cat([centres(state), facts], -1),
            coordinates=state.schedule.coordinates(k, device),
            scale_ids=torch.full((number,), k, device=device),
        )

    def update(self, state: PointsState, k: int, tokens: Tensor) -> PointsState:
        bits = (tokens[..., None] >> torch.arange(self.axes, device=tokens.device).flip(0)) & 1
        cells = sort_cells(2 * state.cells + bits, state.level + 1)
        return replace(state, cells=cells, level=state.level + 1)

    def decode(self, state: PointsState) -> Tensor:
        return centres(state)


def centres(state: PointsState) -> Tensor:
    """B P D in [-1, 1]: the centre of each point's cell."""
    return (state.cells + 0.5) / 2**state.level * 2 - 1


def sort_cells(cells: Tensor, level: int) -> Tensor:
    """Cells B P D in Z-order: by the interleaved bits of their coordinates."""
    key = torch.zeros_like(cells[..., 0])
    for bit in reversed(range(level)):
        for axis in range(cells.shape[-1]):
            key = 2 * key + ((cells[..., axis] >> bit) & 1)
    return cells.gather(1, key.argsort(dim=1, stable=True)[..., None].expand_as(cells))
