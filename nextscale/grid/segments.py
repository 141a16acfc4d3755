"""Long grids, segment by segment along the first axis: each segment has its own residual pyramid, one after another.

As in InfinityStar's clip pyramids (https://arxiv.org/abs/2511.04675), a segment's scales all have its whole length and
grow along the other axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.grid.layers import Layout
from nextscale.grid.pyramid import Quantized, ResidualPyramid
from nextscale.grid.resample import resample
from nextscale.grid.tokenizer import GridState, GridTokenizer
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import Schedule, TokenPyramid

Carry = Literal["none", "input", "state"]


class SegmentedTokenizer(GridTokenizer):
    """A ``GridTokenizer`` whose latent is cut into segments along its first axis, each with its own pyramid.

    A segment's scales all have its whole length along the first axis and ``sides`` along the others. So scale k is
    scale ``k % len(sides)`` of segment ``k // len(sides)``. The transformer's scale attention decides which segments
    may look at which. At its first scale, a segment knows only what it carries over from the previous one.

    Args:
        lengths: lengths of the segments, in latent places; the last one repeats on longer samples and is cut on
            shorter ones.
        carry: ``state``: each segment starts as the last place of the previous one, repeated, so that its tokens
            describe what has changed. ``input``: it starts from zero, but the transformer sees that place at the
            segment's first scale. ``none``: the transformer does not see it either.
        others: as in ``GridTokenizer``; ``sides`` are those of the other axes.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        pyramid: ResidualPyramid,
        sides: Sequence[int | Sequence[int]],
        sample_shape: Sequence[int],
        factor: Sequence[int],
        layout: Layout,
        lengths: Sequence[int],
        carry: Carry = "input",
    ) -> None:
        self.lengths, self.carry = tuple(lengths), carry
        super().__init__(encoder, decoder, pyramid, sides, sample_shape, factor, layout)

    # Schedules.

    def schedule_on(self, latent: Sequence[int]) -> Schedule:
        left, number, shapes = latent[0], 0, []
        while left > 0:
            length = min(left, self.lengths[min(number, len(self.lengths) - 1)])
            rest = Schedule.grid(latent[1:], self.sides)
            shapes += [(length, *scale.shape) for scale in rest.scales]
            left, number = left - length, number + 1
        return Schedule.of(shapes)

    def pyramids(self, schedule: Schedule) -> list[Schedule]:
        size = len(self.sides)
        return [Schedule(schedule.scales[first : first + size]) for first in range(0, len(schedule), size)]

    def latent_shape(self, schedule: Schedule) -> tuple[int, ...]:
        return (self._starts(schedule)[-1], *schedule.scales[-1].shape[1:])

    def _starts(self, schedule: Schedule) -> list[int]:
        """Where segments start along the first axis of the latent; the last entry is the latent's length."""
        return list(accumulate((part.scales[0].shape[0] for part in self.pyramids(schedule)), initial=0))

    def _segment(self, schedule: Schedule, k: int) -> tuple[Schedule, int, slice]:
        """The pyramid that scale k belongs to, the scale's number in it, and the places of its segment."""
        number, scale = divmod(k, len(self.sides))
        starts = self._starts(schedule)
        return self.pyramids(schedule)[number], scale, slice(starts[number], starts[number + 1])

    # Encoding.

    def _cut(self, latent: Tensor, schedule: Schedule) -> list[tuple[Tensor, Schedule]]:
        starts = self._starts(schedule)
        places = [latent[:, :, start:stop] for start, stop in pairwise(starts)]
        return list(zip(places, self.pyramids(schedule), strict=True))

    def _tokens(
        self, features: Tensor, schedule: Schedule, replaced: Callable[[Tensor, int], Tensor]
    ) -> tuple[TokenPyramid, TokenPyramid]:
        parts, last = [], None
        for number, (cut, part) in enumerate(self._cut(features, schedule)):
            first, rest = number * len(self.sides), cut if last is None else cut - last
            parts.append(self.pyramid.tokens_after(rest, part, lambda tokens, k, at=first: replaced(tokens, at + k)))
            if self.carry == "state":
                last = self._end(last, self.pyramid.f_hat(parts[-1][1]))
        chosen, absorbed = zip(*parts, strict=True)
        return self._joined(chosen, schedule), self._joined(absorbed, schedule)

    @staticmethod
    def _joined(parts: Sequence[TokenPyramid], schedule: Schedule) -> TokenPyramid:
        return TokenPyramid.pack([part.tokens for part in parts], schedule)

    @staticmethod
    def _end(before: Tensor | None, f_hat: Tensor) -> Tensor:
        """The last place of a segment that started as ``before`` and whose tokens add ``f_hat``."""
        last = f_hat[:, :, -1:].detach()
        return last if before is None else before + last

    def _quantize(self, features: Tensor, schedule: Schedule, kept_scales: Tensor | None, record: bool) -> Quantized:
        parts, f_hats, last = [], [], None
        for cut, part in self._cut(features, schedule):
            parts.append(self.pyramid.quantize(cut if last is None else cut - last, part, kept_scales, False))
            f_hats.append(parts[-1].f_hat if last is None else last + parts[-1].f_hat)
            if self.carry == "state":
                last = self._end(last, parts[-1].f_hat)
        counts = torch.stack([part.counts for part in parts]).sum(0)
        if self.training and record:
            self.pyramid.quantizer.record(counts)
        return Quantized(
            f_hat=torch.cat(f_hats, 2),
            pyramid=TokenPyramid.pack([part.pyramid.tokens for part in parts], schedule),
            loss=torch.stack([part.loss for part in parts]).mean(),
            residuals=torch.cat([part.residuals for part in parts]),
            codes=torch.cat([part.codes for part in parts]),
            counts=counts,
            nats=None if self.pyramid.prior is None else torch.stack([part.nats for part in parts]).sum(0),
            spread_K=None if self.pyramid.prior is None else torch.stack([part.spread_K for part in parts]).mean(0),
        )

    # The state machine.

    def scale_input(self, state: GridState, k: int) -> ScaleInput:
        _, scale, places = self._segment(state.schedule, k)
        own, device = state.schedule.scales[k], state.f_hat.device
        features = None
        if scale > 0 or k > 0:
            known = state.f_hat[:, :, places]
            if scale == 0 and self.carry == "input":
                known = state.f_hat[:, :, places.start - 1 : places.start].expand_as(known)
            features = resample(known, own.shape, "area").flatten(2).mT
        inputs = ScaleInput(
            num_samples=len(state.f_hat),
            features=features,
            coordinates=self._coordinates(state.schedule, k, places.start, device),
            scale_ids=torch.full((own.length,), k, device=device),
            known_scales={k: own.length},
            legal=self.legal(scale, len(state.f_hat), own.length),
        )
        return self.with_turns(inputs, scale, own.shape)

    def _coordinates(self, schedule: Schedule, k: int, start: int, device: torch.device) -> Tensor:
        """L_k N: ``Schedule.coordinates`` within the segment, shifted by the segment's ``start``."""
        part, scale, _ = self._segment(schedule, k)
        inside = part.coordinates(scale, device)
        inside[:, 0] += start
        return inside

    def part(self, vectors_BLC: Tensor, k: int, schedule: Schedule) -> Tensor:
        pyramid, scale, places = self._segment(schedule, k)
        after = self._starts(schedule)[-1] - places.stop
        rest = [0] * (2 * (len(schedule.scales[k].shape) - 1))
        part = self.pyramid.part(vectors_BLC, scale, pyramid)
        if self.carry == "state":
            part, after = torch.cat([part, part[:, :, -1:].expand(-1, -1, after, *part.shape[3:])], 2), 0
        return F.pad(part, [*rest, places.start, after])

    # Editing.

    def _keep(self, cells: Tensor, schedule: Schedule) -> Tensor:
        """Segment by segment: what is kept in one segment does not affect the others."""
        return torch.cat([super(SegmentedTokenizer, self)._keep(*cut) for cut in self._cut(cells, schedule)], 1)

    def splice(self, state: GridState, known: Any, keep: Tensor) -> GridState:
        size, finest = len(self.sides), []
        for k in range(size - 1, len(state.schedule), size):
            finest.append(keep[:, state.schedule.span(k)].unflatten(1, state.schedule.scales[k].shape))
        return self._put(state, known.f_hat, torch.cat(finest, 1)[:, None])

    def unquantized(self, state: GridState, samples: Tensor, keep: Tensor) -> GridState:
        return self._put(state, self.features(samples).float(), self._cells(keep) > 0)

    def _put(self, state: GridState, known: Tensor, places: Tensor) -> GridState:
        """``state`` with ``known`` at ``places`` (B 1 *latent); elsewhere, tokens still add what they added before."""
        f_hat = torch.where(places, known, state.f_hat)
        if self.carry == "state":
            for start, stop in pairwise(self._starts(state.schedule)[1:]):
                moved = f_hat[:, :, start - 1 : start] - state.f_hat[:, :, start - 1 : start]
                f_hat[:, :, start:stop] += torch.where(places[:, :, start:stop], 0, moved)
        return replace(state, f_hat=f_hat)
