"""A multiscale tokenizer for samples on a regular grid: encoder, residual pyramid, decoder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.device import full_precision
from nextscale.grid.layers import Layout, streaming
from nextscale.grid.pyramid import Quantized, ResidualPyramid
from nextscale.grid.resample import resample
from nextscale.grid.turns import block_turns
from nextscale.memory import chunk_size
from nextscale.tokens.capabilities import AddsParts, DecodesPieces, EditsPlaces, MixesCodes, Requantizes, TakesSizes
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.space import Codes
from nextscale.tokens.tokenizer import MultiscaleTokenizer

KEEP_WHOLE_UP_TO = 3
"""In tokens, as in published VAR."""

DECODE_CHUNK = 2**17
"""Places of the sample's grid decoded at once on a CPU where no gradients are needed: two images of 256 x 256. On a GPU
it is as many as fit (``memory.chunk_size``)."""

ENCODE_CHUNK = 2**20
"""The same for encoding, which has fewer activations."""


@dataclass(frozen=True)
class GridState:
    """``f_hat`` B C *finest is the latent known so far; ``sample_shape`` is the grid of the decoded sample."""

    f_hat: Tensor
    schedule: Schedule
    sample_shape: tuple[int, ...]


class GridTokenizer(MultiscaleTokenizer, EditsPlaces, MixesCodes, DecodesPieces, TakesSizes, AddsParts, Requantizes):
    """Tokenizes samples B channels *grid through a latent grid that is ``factor`` times smaller.

    Samples whose sides are not multiples of ``factor`` are padded (by repeating their border), and decoded samples are
    cropped, so any size works. If the networks are causal, the first axis is padded only at its end.

    Args:
        encoder: B channels *grid -> B C *latent, with each side divided by its factor.
        decoder: B C *latent -> B channels *grid.
        pyramid: quantizes the latent.
        sides: per scale, the length of its longest side or of all its sides, relative to the last scale.
        sample_shape: the default grid of a sample (the training data's).
        factor: how much smaller the latent is along each axis.
        layout: how the networks treat the grid's axes; None is bidirectional along every axis.
    """

    keep_whole_up_to: int = KEEP_WHOLE_UP_TO
    """If an edit keeps anything, it keeps every scale of at most this many tokens whole."""
    group_side: int | tuple[int, ...] | None = None
    """Side of the blocks whose cells are drawn one after another (``turns.py``): one, or one per scale of a residual
    pyramid. None lets the transformer draw the tokens of a scale in any order."""

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        pyramid: ResidualPyramid,
        sides: Sequence[int | Sequence[int]],
        sample_shape: Sequence[int],
        factor: Sequence[int],
        layout: Layout | None = None,
    ) -> None:
        super().__init__()
        self.layout = layout or Layout(len(sample_shape))
        self.encoder, self.decoder, self.pyramid = encoder, decoder, pyramid
        self.sides, self.factor = tuple(sides), tuple(factor)
        self.sample_shape = tuple(sample_shape)
        self.token_space = Codes(pyramid.quantizer.num_codes)
        self.feature_dim = pyramid.quantizer.dim
        self._default = self.schedule_for(self.sample_shape)

    def schedule_for(self, sample_shape: Sequence[int]) -> Schedule:
        """The schedule for samples on this grid, which may differ from the default grid."""
        return self.schedule_on(self._latent_of(sample_shape))

    def _latent_of(self, sample_shape: Sequence[int]) -> list[int]:
        """The latent grid of samples on this grid."""
        padded = [size + extra for size, extra in zip(sample_shape, self._missing(sample_shape), strict=True)]
        padded[0] += self._lead
        return [size // factor for size, factor in zip(padded, self.factor, strict=True)]

    def residual_schedule(self, sample_shape: Sequence[int]) -> Schedule:
        """The scales in which samples on this grid are quantized. Tokens may be drawn on another schedule."""
        return self.schedule_for(sample_shape)

    def schedule_on(self, latent: Sequence[int]) -> Schedule:
        """The schedule on a latent grid."""
        return Schedule.grid(latent, self.sides)

    def latent_shape(self, schedule: Schedule) -> tuple[int, ...]:
        """The latent grid that a schedule describes."""
        return schedule.scales[-1].shape

    def pyramids(self, schedule: Schedule) -> list[Schedule]:
        """The residual pyramids that make up a schedule; each grows to its own finest grid."""
        return [schedule]

    @property
    def _lead(self) -> int:
        """If the first place stays on its own: how many places must be added before it to fill a latent cell."""
        return self.factor[0] - 1 if self.layout.alone else 0

    def _missing(self, sample_shape: Sequence[int]) -> list[int]:
        """How many places a sample lacks along each axis to fill whole cells."""
        sizes = [sample_shape[0] + self._lead, *sample_shape[1:]]
        return [(-size) % factor for size, factor in zip(sizes, self.factor, strict=True)]

    def schedule(self) -> Schedule:
        return self._default

    @property
    def channels(self) -> int:
        """Number of channels of the samples."""
        return self.encoder.channels  # type: ignore[return-value]

    @property
    def codebook(self) -> Tensor:
        return self.pyramid.quantizer.codebook

    @property
    def decoding(self) -> nn.Module:
        return self.decoder

    def features(self, samples: Tensor) -> Tensor:
        """B C *latent: the encoder's output, before quantization."""
        padded = self._pad(samples)
        number = max(1, chunk_size(ENCODE_CHUNK, padded.device) // math.prod(padded.shape[2:]))
        if torch.is_grad_enabled() or len(padded) <= number:
            return self.encoder(padded)
        return torch.cat([self.encoder(chunk) for chunk in padded.split(number)])

    def _pad(self, samples: Tensor) -> Tensor:
        padding = self._missing(samples.shape[2:])
        if not any(padding):
            return samples
        before = [pad // 2 for pad in padding]
        if self.layout.causal:
            before[0] = 0
        sides = [side for pad, first in zip(padding[::-1], before[::-1], strict=True) for side in (first, pad - first)]
        return F.pad(samples, sides, mode="replicate")

    def encode(self, samples: Tensor) -> TokenPyramid:
        return self.encode_after(samples, lambda tokens, k: tokens)[0]

    def encode_after(
        self, samples: Tensor, replaced: Callable[[Tensor, int], Tensor]
    ) -> tuple[TokenPyramid, TokenPyramid]:
        features = self.features(samples).float()
        with full_precision(features.device):
            return self._tokens(features, self.residual_schedule(samples.shape[2:]), replaced)

    def reconstruct(self, samples: Tensor) -> tuple[Tensor, TokenPyramid]:
        reconstruction, quantized = self.quantize(samples)
        return reconstruction, quantized.pyramid

    def quantize(
        self, samples: Tensor, kept_scales: Tensor | None = None, record: bool = True
    ) -> tuple[Tensor, Quantized]:
        """Encode, quantize and decode with gradients; returns reconstructions like ``samples``, and the quantization.

        For ``kept_scales`` and ``record`` see ``ResidualPyramid.quantize``.
        """
        shape = tuple(samples.shape[2:])
        schedule = self.residual_schedule(shape)
        features = self.features(samples)
        with full_precision(features.device):
            quantized = self._quantize(features.float(), schedule, kept_scales, record)
        return self._decode(quantized.f_hat, shape), quantized

    def _tokens(
        self, features: Tensor, schedule: Schedule, replaced: Callable[[Tensor, int], Tensor]
    ) -> tuple[TokenPyramid, TokenPyramid]:
        return self.pyramid.tokens_after(features, schedule, replaced)

    def _quantize(self, features: Tensor, schedule: Schedule, kept_scales: Tensor | None, record: bool) -> Quantized:
        return self.pyramid.quantize(features, schedule, kept_scales, record)

    def initial_state(
        self,
        num_samples: int,
        conditions: Mapping[str, Tensor] | None = None,
        schedule: Schedule | None = None,
    ) -> Any:
        schedule = schedule or self._default
        latent = self.latent_shape(schedule)
        shape = [size * factor for size, factor in zip(latent, self.factor, strict=True)]
        shape[0] -= self._lead
        f_hat = torch.zeros(num_samples, self.feature_dim, *latent, device=self.device)
        return GridState(f_hat, schedule, self.sample_shape if schedule == self._default else tuple(shape))

    def scale_input(self, state: Any, k: int) -> ScaleInput:
        scale, device = state.schedule.scales[k], state.f_hat.device
        features = None if k == 0 else resample(state.f_hat, scale.shape, "area").flatten(2).mT
        inputs = ScaleInput(
            num_samples=len(state.f_hat),
            features=features,
            coordinates=state.schedule.coordinates(k, device),
            scale_ids=torch.full((scale.length,), k, device=device),
            known_scales={k: scale.length},
            legal=self.legal(k, len(state.f_hat), scale.length),
        )
        return self.with_turns(inputs, k, scale.shape)

    @property
    def group_order(self) -> Literal["fixed"] | None:  # type: ignore[override]
        return None if self.group_side is None else "fixed"

    def with_turns(self, inputs: ScaleInput, k: int, shape: tuple[int, ...]) -> ScaleInput:
        """``inputs`` of one scale, which is scale k of its residual pyramid and has this shape, with its sub-steps."""
        if self.group_side is None:
            return inputs
        side = self.group_side if isinstance(self.group_side, int) else self.group_side[k]
        turns, number = block_turns(shape, side, inputs.scale_ids.device)
        return replace(inputs, turns=turns, num_turns=dict.fromkeys(inputs.scales, number))

    def legal(self, k: int, num_samples: int, length: int) -> Tensor | None:
        """B L_k V booleans, without memory of their own: the codes that scale k of a residual pyramid uses."""
        legal_V = self.pyramid.quantizer.legal(k)
        return None if legal_V is None else legal_V.expand(num_samples, length, -1)

    def update(self, state: Any, k: int, tokens: Tensor) -> Any:
        return self._add(state, k, self.pyramid.quantizer.lookup(tokens))

    def update_soft(self, state: Any, k: int, weights: Tensor) -> Any:
        return self._add(state, k, weights @ self.pyramid.quantizer.codebook)

    def cuts(self, length: int) -> range:
        """Between latent cells."""
        before = 0 if self.layout.causal else self._missing([length, *self.sample_shape[1:]])[0] // 2
        return range(self.factor[0] - self._lead - before, length, self.factor[0])

    def keep_tokens(self, keep: Tensor) -> Tensor:
        """Published VAR's rule: a token is kept where the mask, resized linearly from the finest grid, exceeds 1/2.

        Here the mask on the finest grid is the share of each cell that is kept. Scales of three tokens or fewer
        (``keep_whole_up_to``) describe the sample as a whole, so they are kept if anything is.
        """
        return self._keep(self._cells(keep), self.schedule_for(keep.shape[1:]))

    def _cells(self, keep: Tensor) -> Tensor:
        """B 1 *latent: the share of each cell that ``keep`` (B *grid booleans) keeps."""
        places = self._pad(keep[:, None].float())
        if self._lead:
            places = torch.cat([places[:, :, :1].expand(-1, -1, self._lead, *places.shape[3:]), places], 2)
        latent = [size // factor for size, factor in zip(places.shape[2:], self.factor, strict=True)]
        return F.interpolate(places, latent, mode="area")

    def _keep(self, cells: Tensor, schedule: Schedule) -> Tensor:
        """B L booleans: the tokens to keep, from the share of each cell that is kept."""
        mode = ("linear", "bilinear", "trilinear")[cells.dim() - 3]
        parts = [F.interpolate(cells, scale.shape, mode=mode).flatten(1) > 0.5 for scale in schedule.scales]
        some = (cells > 0).flatten(1).any(1, keepdim=True)
        return torch.cat(
            [some.expand_as(part) if part.shape[1] <= self.keep_whole_up_to else part for part in parts], 1
        )

    def splice(self, state: Any, known: Any, keep: Tensor) -> Any:
        finest = state.schedule.span(len(state.schedule) - 1)
        places = keep[:, finest].unflatten(1, state.schedule.scales[-1].shape)[:, None]
        return replace(state, f_hat=torch.where(places, known.f_hat, state.f_hat))

    def unquantized(self, state: Any, samples: Tensor, keep: Tensor) -> Any:
        """Puts the encoder's own features into every cell of which any part is kept."""
        return replace(state, f_hat=torch.where(self._cells(keep) > 0, self.features(samples).float(), state.f_hat))

    def schedules_nearby(self) -> list[Schedule]:
        latent = self.latent_shape(self._default)
        sizes = [range(max(1, size // 2), size + 2) for size in latent]
        return [self.schedule_on(shape) for shape in itertools.product(*sizes)]

    def part_of(self, tokens: Tensor, k: int, schedule: Schedule) -> Tensor:
        return self.part(self.pyramid.quantizer.lookup(tokens), k, schedule)

    def sum_of(self, state: Any) -> Tensor:
        return state.f_hat

    def part(self, vectors_BLC: Tensor, k: int, schedule: Schedule) -> Tensor:
        """B C *latent: what the codes of scale k add to f_hat, or replace it by."""
        return self.pyramid.part(vectors_BLC, k, schedule)

    def _add(self, state: GridState, k: int, vectors_BLC: Tensor) -> GridState:
        return replace(state, f_hat=self.pyramid.after(state.f_hat, self.part(vectors_BLC, k, state.schedule)))

    @property
    def adds(self) -> bool:
        return self.pyramid.adds

    def decode(self, state: Any) -> Tensor:
        return self._decode(self.sum_of(state), state.sample_shape)

    def decode_like(self, state: Any, samples: Tensor) -> Tensor:
        return self._decode(self.sum_of(state), samples.shape[2:])

    def decode_pieces(self, state: Any, places: int) -> Iterator[Tensor]:
        """Decode samples piece by piece along the first axis, ``places`` latent places at a time.

        Joined, the pieces equal the output of ``decode``, but memory does not grow with the length. For causal decoders
        only. The decoder must not be used for anything else until all pieces are read.
        """
        left, sides = state.sample_shape[0], state.sample_shape[1:]
        with streaming(self.decoder):
            for part in self.sum_of(state).split(places, 2):
                with torch.no_grad():
                    piece = self.decoder(part).to(part.dtype)[:, :, :left]
                left -= piece.shape[2]
                yield self._crop(piece, (piece.shape[2], *sides))

    def _decode(self, f_hat: Tensor, sample_shape: Sequence[int]) -> Tensor:
        if torch.is_grad_enabled():
            return self._crop(self.decoder(f_hat), sample_shape)
        # In chunks, because the finest activations take far more memory than samples. A chunk is some samples or, if
        # one sample is too large and the decoder is causal, a part of its first axis.
        number = chunk_size(DECODE_CHUNK, f_hat.device) // math.prod(sample_shape)
        decoded = [self._decode_long(c) if number == 0 else self.decoder(c) for c in f_hat.split(max(1, number))]
        return self._crop(torch.cat([chunk.to(f_hat.dtype) for chunk in decoded]), sample_shape)

    def _decode_long(self, f_hat: Tensor) -> Tensor:
        if not self.layout.causal:
            return self.decoder(f_hat)
        places = max(1, chunk_size(DECODE_CHUNK, f_hat.device) // math.prod([*f_hat.shape[3:], *self.factor]))
        with streaming(self.decoder):
            return torch.cat([self.decoder(part) for part in f_hat.split(places, 2)], 2)

    def _crop(self, decoded: Tensor, sample_shape: Sequence[int]) -> Tensor:
        for axis, size in enumerate(sample_shape, start=2):
            spare = decoded.shape[axis] - size
            decoded = decoded.narrow(axis, 0 if axis == 2 and self.layout.causal else spare // 2, size)
        return decoded
