"""Next-token baselines: the tokens of a grid tokenizer, drawn one by one.

Every token is a scale of its own, so attention between scales is plain causal attention. The transformer, training,
sampling and evaluation are those of next-scale prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import DataError
from nextscale.grid.layers import Layout
from nextscale.grid.orders import reading_order
from nextscale.grid.pyramid import ResidualPyramid
from nextscale.grid.tokenizer import GridTokenizer
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import Scale, Schedule, TokenPyramid


@dataclass(frozen=True)
class OrderedState:
    """``codes`` are the vectors of the tokens known so far, each B 1 C. They are shared with the states after it, so
    that thousands of states fit into memory."""

    num_samples: int
    codes: tuple[Tensor, ...]
    schedule: Schedule
    sample_shape: tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """Of each token in the order in which tokens are drawn: ``places`` L, where it lies on the packed axis of the
    residual pyramid's schedule; ``ranks`` L, the inverse; ``coordinates`` L N; ``ids`` L, its number."""

    places: Tensor
    ranks: Tensor
    coordinates: Tensor
    ids: Tensor


class OrderedTokenizer(GridTokenizer):
    """A ``GridTokenizer`` whose tokens are drawn one by one.

    It has the weights, the codes and the decoder of the ``GridTokenizer`` with the same arguments, and it quantizes in
    the same scales. Only the order in which tokens are drawn differs: the schedule has one scale per token, the input
    of a token is the code of the token before it, and its coordinates are those of the place to predict. Samples have
    one size, that of the training data. A kept part of an edit is quantized.

    Args:
        order: a key of ``orders.ORDERS``.
        others: as in ``GridTokenizer``.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        pyramid: ResidualPyramid,
        sides: Sequence[int | Sequence[int]],
        sample_shape: Sequence[int],
        factor: Sequence[int],
        layout: Layout | None = None,
        order: str = "raster",
    ) -> None:
        self.order = order
        super().__init__(encoder, decoder, pyramid, sides, sample_shape, factor, layout)
        self._residual = super().schedule_on(self._latent_of(self.sample_shape))
        self._places = reading_order(self._residual, order)
        self._scales = np.repeat(np.arange(len(self._residual)), self._residual.lengths)[self._places].tolist()
        self._names = [f"scale{k}" for k in self._scales]
        self._readings: dict[torch.device, Reading] = {}

    def reading(self, device: torch.device) -> Reading:
        """On ``device``; computed once, because sampling asks for every token."""
        if device not in self._readings:
            # Sampling must not leave tensors behind that training cannot use.
            with torch.inference_mode(False):
                places = torch.from_numpy(self._places)
                centres = [self._residual.coordinates(k, "cpu") for k in range(len(self._residual))]
                tensors = (places, places.argsort(), torch.cat(centres)[places], torch.arange(len(places)))
                self._readings[device] = Reading(*(tensor.to(device) for tensor in tensors))
        return self._readings[device]

    # Schedules.

    def schedule_on(self, latent: Sequence[int]) -> Schedule:
        """One scale per token."""
        return Schedule((Scale((1,) * len(latent)),) * super().schedule_on(latent).length)

    def residual_schedule(self, sample_shape: Sequence[int]) -> Schedule:
        self._check_size(sample_shape)
        return self._residual

    def latent_shape(self, schedule: Schedule) -> tuple[int, ...]:
        return self._residual.scales[-1].shape

    def schedules_nearby(self) -> list[Schedule]:
        return [self._default]

    def scale_names(self, num_scales: int) -> list[str]:
        """Tokens are measured under the name of the scale that they were quantized in."""
        return self._names[:num_scales]

    def _check_size(self, sample_shape: Sequence[int]) -> None:
        if self._latent_of(sample_shape) != list(self._residual.scales[-1].shape):
            ours, theirs = (" x ".join(map(str, shape)) for shape in (self.sample_shape, sample_shape))
            raise DataError(
                f"tokenizer.order={self.order} takes samples of one size, {ours}, but these have {theirs}: "
                "resize them, or train with tokenizer.order=scales"
            )

    # Encoding.

    def encode(self, samples: Tensor) -> TokenPyramid:
        return self._drawn(super().encode_after(samples, lambda tokens, k: tokens)[0])

    def encode_after(
        self, samples: Tensor, replaced: Callable[[Tensor, int], Tensor]
    ) -> tuple[TokenPyramid, TokenPyramid]:
        ranks = self.reading(torch.device("cpu")).ranks.tolist()

        def one_by_one(tokens: Tensor, k: int) -> Tensor:
            first = self._residual.offsets[k]
            parts = [replaced(token, ranks[first + i]) for i, token in enumerate(tokens.split(1, 1))]
            return torch.cat(parts, 1)

        chosen, absorbed = super().encode_after(samples, one_by_one)
        return self._drawn(chosen), self._drawn(absorbed)

    def reconstruct(self, samples: Tensor) -> tuple[Tensor, TokenPyramid]:
        reconstruction, pyramid = super().reconstruct(samples)
        return reconstruction, self._drawn(pyramid)

    def _drawn(self, pyramid: TokenPyramid) -> TokenPyramid:
        """Tokens of the residual pyramid, in the order in which they are drawn."""
        return TokenPyramid(pyramid.tokens[:, self.reading(pyramid.tokens.device).places], self._default)

    # The state machine.

    def initial_state(
        self,
        num_samples: int,
        conditions: Mapping[str, Tensor] | None = None,
        schedule: Schedule | None = None,
    ) -> OrderedState:
        if schedule is not None and schedule != self._default:
            raise DataError(
                f"tokenizer.order={self.order} draws samples of one size: {self._default.length} tokens, "
                f"not {schedule.length}"
            )
        return OrderedState(num_samples, (), self._default, self.sample_shape)

    def scale_input(self, state: OrderedState, k: int) -> ScaleInput:
        reading = self.reading(self.codebook.device)
        return ScaleInput(
            num_samples=state.num_samples,
            features=state.codes[k - 1] if k > 0 else None,
            coordinates=reading.coordinates[k : k + 1],
            scale_ids=reading.ids[k : k + 1],
            known_scales={k: 1},
            legal=self.legal(self._scales[k], state.num_samples, 1),
        )

    def teacher_forcing(self, pyramid: TokenPyramid, conditions: Mapping[str, Tensor] | None = None) -> ScaleInput:
        reading = self.reading(pyramid.tokens.device)
        codes = self.pyramid.quantizer.lookup(pyramid.tokens[:, :-1])
        return ScaleInput(
            num_samples=len(pyramid),
            features=F.pad(codes, (0, 0, 1, 0)) if pyramid.schedule.length > 1 else None,
            coordinates=reading.coordinates,
            scale_ids=reading.ids,
            mask=pyramid.mask,
            start=1,
            known_scales=dict.fromkeys(range(len(reading.ids)), 1),
        )

    def update(self, state: OrderedState, k: int, tokens: Tensor) -> OrderedState:
        return replace(state, codes=(*state.codes, self.pyramid.quantizer.lookup(tokens)))

    def update_soft(self, state: OrderedState, k: int, weights: Tensor) -> OrderedState:
        return replace(state, codes=(*state.codes, weights @ self.pyramid.quantizer.codebook))

    def sum_of(self, state: OrderedState) -> Tensor:
        """The residual pyramid's sum. Tokens that are not known yet are zero, and scales without any add nothing."""
        number, residual = len(state.codes), self._residual
        f_hat = torch.zeros(
            state.num_samples, self.feature_dim, *residual.scales[-1].shape, device=self.codebook.device
        )
        if number == 0:
            return f_hat
        places = self.reading(f_hat.device).places[:number]
        vectors = f_hat.new_zeros(state.num_samples, residual.length, self.feature_dim)
        vectors[:, places] = torch.cat(state.codes, 1).to(vectors.dtype)
        last = int(self._places[:number].max())  # scales follow one another, or are read together
        for k, offset in enumerate(residual.offsets[:-1]):
            if offset <= last:
                f_hat = f_hat + self.pyramid.part(vectors[:, residual.span(k)], k, residual)
        return f_hat

    def part(self, vectors_BLC: Tensor, k: int, schedule: Schedule) -> Tensor:
        """B C *latent: what the code of token k adds to the sum of those before it."""
        residual, scale = self._residual, self._scales[k]
        vectors = vectors_BLC.new_zeros(len(vectors_BLC), residual.lengths[scale], self.feature_dim)
        alone = vectors.clone()
        alone[:, int(self._places[k]) - residual.offsets[scale]] = vectors_BLC[:, 0]
        added = self.pyramid.part(alone, scale, residual)
        # A convolution's bias belongs to the first token of the scale.
        return added if self._scales.index(scale) == k else added - self.pyramid.part(vectors, scale, residual)

    # Editing.

    def keep_tokens(self, keep: Tensor) -> Tensor:
        kept = self._keep(self._cells(keep), self.residual_schedule(keep.shape[1:]))
        return kept[:, self.reading(keep.device).places]

    def splice(self, state: OrderedState, known: OrderedState, keep: Tensor) -> OrderedState:
        number = len(state.codes)
        if number == 0:
            return state
        ours, theirs = torch.cat(state.codes, 1), torch.cat(known.codes, 1)
        codes = torch.where(keep[:, :number, None], theirs, ours)
        return replace(state, codes=codes.split(1, 1))

    def unquantized(self, state: OrderedState, samples: Tensor, keep: Tensor) -> OrderedState:
        """``state``: it holds codes."""
        return state
