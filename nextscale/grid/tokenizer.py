"""A multiscale tokenizer for samples on a regular grid: encoder, residual pyramid, decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.grid.pyramid import Quantized, ResidualPyramid
from nextscale.grid.resample import resample
from nextscale.pyramid import Schedule, TokenPyramid
from nextscale.tokenizer import MultiscaleTokenizer, ScaleInput
from nextscale.tokenspace import Codes

WHOLE = 3
"""Tokens up to which an edit keeps a scale whole, as published VAR does."""

CHUNK = 2**17
"""Places of the sample's grid that are decoded at once, where no gradients are needed: two of 256 x 256."""


@dataclass(frozen=True)
class GridState:
    """``f_hat`` B C *finest, what is known so far; ``sample_shape``, the grid of the decoded sample."""

    f_hat: Tensor
    schedule: Schedule
    sample_shape: tuple[int, ...]


class GridTokenizer(MultiscaleTokenizer):
    """Tokenizes samples B channels *grid through a latent grid that is ``factor`` times smaller.

    Samples whose sides are not multiples of ``factor`` are padded (by repeating their border) and decoded samples
    cropped, so any size works.

    Args:
        encoder: B channels *grid -> B C *latent, each side divided by its factor.
        decoder: the way back.
        pyramid: quantizes the latent.
        sides: length of the longest side of each scale, relative to the last.
        sample_shape: the default grid of a sample (the training data's).
        factor: how much smaller the latent is, along each axis.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        pyramid: ResidualPyramid,
        sides: Sequence[int],
        sample_shape: Sequence[int],
        factor: Sequence[int],
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.pyramid = encoder, decoder, pyramid
        self.sides, self.factor = tuple(sides), tuple(factor)
        self.sample_shape = tuple(sample_shape)
        self.token_space = Codes(pyramid.quantizer.num_codes)
        self.feature_dim = pyramid.quantizer.dim
        self._default = self.schedule_for(self.sample_shape)

    def schedule_for(self, sample_shape: Sequence[int]) -> Schedule:
        """The schedule of samples of this grid, which may differ from the default one."""
        latent = [-(-size // factor) for size, factor in zip(sample_shape, self.factor, strict=True)]
        return Schedule.grid(latent, self.sides)

    def schedule(self) -> Schedule:
        return self._default

    @property
    def codebook(self) -> Tensor:
        return self.pyramid.quantizer.codebook

    @property
    def decoding(self) -> nn.Module:
        return self.decoder

    def features(self, samples: Tensor) -> Tensor:
        """B C *latent: what the encoder makes of samples, before quantization."""
        return self.encoder(self._pad(samples))

    def _pad(self, samples: Tensor) -> Tensor:
        padding = [(-size) % factor for size, factor in zip(samples.shape[2:], self.factor, strict=True)]
        if not any(padding):
            return samples
        sides = [side for pad in reversed(padding) for side in (pad // 2, pad - pad // 2)]
        return F.pad(samples, sides, mode="replicate")

    def encode(self, samples: Tensor) -> TokenPyramid:
        features = self.features(samples).float()
        with torch.autocast(features.device.type, enabled=False):
            return self.pyramid.tokens(features, self.schedule_for(samples.shape[2:]))

    def reconstruct(
        self, samples: Tensor, kept_scales: Tensor | None = None, record: bool = True
    ) -> tuple[Tensor, Quantized]:
        """Encode, quantize and decode with gradients: reconstructions like ``samples``, and the quantization.

        For ``kept_scales`` and ``record`` see ``ResidualPyramid.quantize``.
        """
        shape = tuple(samples.shape[2:])
        schedule = self.schedule_for(shape)
        features = self.features(samples)
        with torch.autocast(features.device.type, enabled=False):
            quantized = self.pyramid.quantize(features.float(), schedule, kept_scales, record)
        return self._decode(quantized.f_hat, shape), quantized

    def initial_state(
        self,
        num_samples: int,
        conditions: Mapping[str, Tensor] | None = None,
        schedule: Schedule | None = None,
    ) -> GridState:
        schedule = schedule or self._default
        finest = schedule.scales[-1].shape
        shape = tuple(size * factor for size, factor in zip(finest, self.factor, strict=True))
        f_hat = torch.zeros(num_samples, self.feature_dim, *finest, device=self.device)
        return GridState(f_hat, schedule, self.sample_shape if schedule == self._default else shape)

    def scale_input(self, state: GridState, k: int) -> ScaleInput:
        scale, device = state.schedule.scales[k], state.f_hat.device
        features = None if k == 0 else resample(state.f_hat, scale.shape, "area").flatten(2).mT
        return ScaleInput(
            features=features,
            coordinates=state.schedule.coordinates(k, device),
            scale_ids=torch.full((scale.length,), k, device=device),
        )

    def update(self, state: GridState, k: int, tokens: Tensor) -> GridState:
        return self._add(state, k, self.pyramid.quantizer.lookup(tokens))

    def update_soft(self, state: GridState, k: int, weights: Tensor) -> GridState:
        return self._add(state, k, weights @ self.pyramid.quantizer.codebook)

    def keep_tokens(self, keep: Tensor) -> Tensor:
        """Published VAR's rule: the mask on the finest grid (here its share of each cell), resized linearly to each
        scale, keeps a token where it is above one half. Scales of three tokens or fewer, which say what the whole
        sample is, are kept if anything is."""
        schedule = self.schedule_for(keep.shape[1:])
        cells = F.interpolate(self._pad(keep[:, None].float()), schedule.scales[-1].shape, mode="area")
        mode = ("linear", "bilinear", "trilinear")[keep.dim() - 2]
        parts = [F.interpolate(cells, scale.shape, mode=mode).flatten(1) > 0.5 for scale in schedule.scales]
        some = keep.flatten(1).any(1, keepdim=True)
        return torch.cat([some.expand_as(part) if part.shape[1] <= WHOLE else part for part in parts], 1)

    def splice(self, state: GridState, known: GridState, keep: Tensor) -> GridState:
        finest = state.schedule.span(len(state.schedule) - 1)
        places = keep[:, finest].unflatten(1, state.schedule.scales[-1].shape)[:, None]
        return replace(state, f_hat=torch.where(places, known.f_hat, state.f_hat))

    def _add(self, state: GridState, k: int, vectors_BLC: Tensor) -> GridState:
        return replace(state, f_hat=state.f_hat + self.pyramid.part(vectors_BLC, k, state.schedule))

    def decode(self, state: Any) -> Tensor:
        return self._decode(state.f_hat, state.sample_shape)

    def decode_like(self, state: GridState, samples: Tensor) -> Tensor:
        return self._decode(state.f_hat, samples.shape[2:])

    def _decode(self, f_hat: Tensor, sample_shape: Sequence[int]) -> Tensor:
        if torch.is_grad_enabled():
            decoded = self.decoder(f_hat)
        else:  # in chunks, as finest activations take far more memory than samples
            number = max(1, CHUNK // math.prod(sample_shape))
            decoded = torch.cat([self.decoder(chunk).to(f_hat.dtype) for chunk in f_hat.split(number)])
        for axis, size in enumerate(sample_shape, start=2):
            decoded = decoded.narrow(axis, (decoded.shape[axis] - size) // 2, size)
        return decoded
