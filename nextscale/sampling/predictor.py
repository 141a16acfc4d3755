"""The transformer under conditions and guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from nextscale.config.sections import SamplingConfig
from nextscale.errors import NextscaleError
from nextscale.tokens.inputs import ScaleInput
from nextscale.transformer import DrawNext, KVCache, ScaleTransformer


def guidance_at(config: SamplingConfig, k: int, num_scales: int) -> float:
    """Guidance t at scale k: logits are (1 + t) conditional - t unconditional."""
    if config.guidance_schedule == "constant" or num_scales == 1:
        return config.guidance
    return config.guidance * k / (num_scales - 1)


class Predictor:
    """Sets up what all scales share, and predicts one scale per call."""

    def __init__(
        self,
        transformer: ScaleTransformer,
        conditions: Mapping[str, Tensor],
        num_samples: int,
        config: SamplingConfig,
        capacity: int,
    ) -> None:
        self.transformer = transformer
        cond_BD = transformer.conditioner(conditions, num_samples)
        self.guided = config.guidance > 0 and transformer.conditioner.guides(conditions)
        if self.guided:
            cond_BD = torch.cat([cond_BD, transformer.conditioner({}, num_samples)])
        self.modulation = transformer.modulation(cond_BD)
        self.cache = KVCache(capacity)
        self._largest: list[Tensor] = []

    def __call__(self, inputs: ScaleInput, guidance: float, revealed: tuple[Tensor, Tensor] | None) -> Tensor:
        """B L_k V_k, -inf where a token is not legal. ``revealed`` is passed to the transformer."""
        seen = inputs
        if self.guided:
            seen = _doubled(inputs)
            revealed = None if revealed is None else (torch.cat([revealed[0]] * 2), torch.cat([revealed[1]] * 2))
        (logits,) = self.transformer(seen, self.modulation, self.cache, revealed, by_scale=True)
        return self._guide(logits, guidance, inputs.legal, inputs.mask)

    def one_by_one(self, inputs: ScaleInput, guidance: float, draw: DrawNext, times: int = 1) -> Tensor:
        """(times B) L_k *token_shape: tokens that ``draw`` draws one after another, from logits as above (with a
        refiner). Each sample is drawn ``times`` times, in successive rows."""

        def here(mask: Tensor | None, i: int | Tensor) -> Tensor | None:
            if mask is None or isinstance(i, Tensor):  # in groups, logits are those of the whole scale
                return mask
            return mask[:, i : i + 1].repeat_interleave(times, 0)

        def next_token(i: int | Tensor, logits: Tensor) -> Tensor:
            i = i[: inputs.num_samples] if isinstance(i, Tensor) else i
            legal, real = here(inputs.legal, i), here(inputs.mask, i)
            token = draw(i, self._guide(logits, guidance, legal, real))
            return torch.cat([token] * 2) if self.guided else token

        seen = _doubled(inputs) if self.guided else inputs
        tokens = self.transformer(seen, self.modulation, self.cache, draw=next_token, times=times)
        return tokens[: times * inputs.num_samples]

    def _guide(self, logits: Tensor, guidance: float, legal: Tensor | None, mask: Tensor | None) -> Tensor:
        if self.guided:
            logits, null = logits.chunk(2)
            logits = (1 + guidance) * logits - guidance * null
        if legal is not None:
            logits = logits.masked_fill(~legal[..., : logits.shape[-1]], -torch.inf)
        largest = logits.amax(-1)
        self._largest.append((largest if mask is None else largest.masked_fill(~mask, 0)).flatten())
        return logits

    def check(self) -> None:
        """Raise NextscaleError if logits so far describe no distribution. Once for many scales, because this waits for
        the device."""
        if self._largest:
            check_finite(self.finite())

    def finite(self) -> Tensor:
        """Whether all logits since the last call describe distributions: a boolean on the device."""
        finite = torch.cat(self._largest).isfinite().all()
        self._largest.clear()
        return finite


def check_finite(finite: Tensor) -> None:
    """Raise NextscaleError if ``Predictor.finite`` says no."""
    if not bool(finite):
        raise NextscaleError(
            "the transformer's logits are not finite, or a token has no legal value: its weights are damaged, its "
            "training has diverged, or its precision is too low"
        )


def _doubled(inputs: ScaleInput) -> ScaleInput:
    """The same inputs for both the conditional and the unconditional half of guidance.

    The input of a modality's own stem is not doubled: the stem sees one half, and the other half is the same.
    """

    def tile(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.cat([tensor] * 2)

    number = inputs.num_samples if inputs.features is None else 2 * inputs.num_samples
    coordinates = inputs.coordinates if inputs.coordinates.dim() == 2 else torch.cat([inputs.coordinates] * 2)
    doubled = {"features": tile(inputs.features), "mask": tile(inputs.mask), "coordinates": coordinates}
    doubled["groups"] = tile(inputs.groups)
    return replace(inputs, num_samples=number, **doubled)
