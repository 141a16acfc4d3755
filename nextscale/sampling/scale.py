"""Drawing the tokens of one scale: all at once, or in sub-steps that each reveal some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from nextscale.config.sections import SamplingConfig
from nextscale.errors import ConfigError
from nextscale.sampling.reveal import rank_in_group
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.space import Generators, TokenSpace, filter_logits, uniform
from nextscale.transformer import ScaleTransformer

T = TypeVar("T", int, float)


def at_scale(value: T | Sequence[T] | Mapping[str, T], k: int, setting: str, name: str = "") -> T:
    """The value of a setting at scale k: a single value, entry k of one value per scale, or the value for the scale's
    name."""
    if isinstance(value, int | float):
        return value  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return value.get(name, SamplingConfig.model_fields[setting].default)
    if k >= len(value):
        raise ConfigError(f"sampling.{setting} has {len(value)} values, one per scale, but there is a scale {k + 1}")
    return value[k]


@dataclass(frozen=True)
class ScaleSettings:
    """The settings for drawing one scale: fields of ``SamplingConfig``."""

    temperature: float
    top_k: int
    top_p: float
    steps: int
    reveal: str
    group_steps: int | None = None

    @classmethod
    def at(cls, config: SamplingConfig, k: int, name: str) -> ScaleSettings:
        """The settings of scale k, which is called ``name``."""
        return cls(
            at_scale(config.temperature, k, "temperature", name),
            at_scale(config.top_k, k, "top_k", name),
            at_scale(config.top_p, k, "top_p", name),
            at_scale(config.steps, k, "steps", name),
            config.reveal,
            None if config.group_steps is None else at_scale(config.group_steps, k, "group_steps", name),
        )

    @property
    def filters(self) -> tuple[float, int, float]:
        """Temperature, top_k and top_p, in the order of ``TokenSpace.draw``."""
        return self.temperature, self.top_k, self.top_p


def draw_scale(
    predict: Callable[[tuple[Tensor, Tensor] | None], Tensor],
    transformer: ScaleTransformer,
    inputs: ScaleInput,
    num_samples: int,
    settings: ScaleSettings,
    generator: Generators,
    kept: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Tokens B L_k of one scale, drawn in ``settings.steps`` sub-steps, and the logits of the last sub-step."""
    space, length = transformer.token_space, inputs.length
    device, real = inputs.scale_ids.device, to_draw(inputs, num_samples, kept)
    ragged = kept is not None or inputs.mask is not None  # else nothing must be asked of the device
    if not transformer.config.in_scale_steps:
        logits = predict(None)
        tokens = draw_real(space, logits, real if ragged else None, generator, settings.filters)
        return (tokens if kept is None else where_chosen(kept[1], kept[0], tokens)), logits

    tokens = torch.zeros(num_samples, length, *space.token_shape, dtype=torch.long, device=device)
    known = torch.zeros_like(real)
    if kept is not None:
        tokens, known = where_chosen(kept[1], kept[0], tokens), kept[1]
    lengths_B1, ranks = real.sum(1, keepdim=True), None
    if settings.reveal == "groups" and inputs.groups is not None:
        ranks = rank_in_group(inputs.groups, _priority(real, generator), real & ~known)
        if settings.group_steps is not None:
            # Training reveals any number of a group's tokens, so the model knows every such sub-step.
            largest_B1 = ranks.masked_fill(ranks == length, -1).amax(1, keepdim=True) + 1
            at_once_B1 = (largest_B1 / settings.group_steps).ceil().long().clamp_min(1)
            ranks = torch.where(ranks == length, length, ranks // at_once_B1)
        steps_B1 = ranks.masked_fill(known | ~real, -1).amax(1, keepdim=True) + 1
    else:
        steps_B1 = lengths_B1.clamp_max(settings.steps)
    whole = ranks is None and not ragged  # every sub-step draws the whole scale
    logits = None
    for step in range(min(length, settings.steps) if whole else max(1, int(steps_B1.max()))):
        logits = predict((tokens, known))
        # Tokens that are not revealed in this sub-step use no random numbers, as far as they are known beforehand.
        drawing = real & (step < steps_B1) if ranks is None else ranks == step
        drawn = draw_real(space, logits, None if whole else drawing, generator, settings.filters)
        now = drawing
        if ranks is None:
            priority = _priority(drawing, generator, whole)
            if settings.reveal == "confidence":
                # A little randomness: without it, rounding errors would choose among equally confident tokens.
                priority = 1e-3 * priority - space.loss(logits, drawn)
            # Known tokens first, then the best of the rest, up to this sub-step's share of the scale.
            order = priority.masked_fill(known, torch.inf).masked_fill(~real, -torch.inf)
            order = order.argsort(1, descending=True).argsort(1)
            now = drawing & ~known & (order < lengths_B1 * (step + 1) // steps_B1.clamp_min(1))
        tokens, known = where_chosen(now, drawn, tokens), known | now
    assert logits is not None
    return tokens, logits


def to_draw(inputs: ScaleInput, num_samples: int, kept: tuple[Tensor, Tensor] | None) -> Tensor:
    """B L_k booleans: the tokens that are drawn. Kept ones are drawn too, and then replaced, unless a sample keeps all
    its tokens."""
    shape, device = (num_samples, inputs.length), inputs.scale_ids.device
    real = torch.ones(shape, dtype=torch.bool, device=device) if inputs.mask is None else inputs.mask
    return real if kept is None else real & (real & ~kept[1]).any(1, keepdim=True)


def draw_real(
    space: TokenSpace,
    logits: Tensor,
    mask: Tensor | None,
    generator: Generators,
    settings: tuple[float, int, float],
) -> Tensor:
    """``space.draw``. With one generator per sample, the random numbers do not depend on how far a batch is padded."""
    if mask is None or generator is None or isinstance(generator, torch.Generator):
        return space.draw(logits, generator, *settings)
    drawn = torch.zeros(*logits.shape[:2], *space.token_shape, dtype=torch.long, device=logits.device)
    for i, (one, real) in enumerate(zip(generator, _places(mask), strict=True)):
        if len(real):
            drawn[i, real] = space.draw(logits[i, real][None], [one], *settings)[0]
    return drawn


def _priority(mask: Tensor, generator: Generators, whole: bool = False) -> Tensor:
    """B L uniform numbers, drawn in the same way as in ``draw_real``. ``whole``: ``mask`` is known to be all True."""
    if whole or generator is None or isinstance(generator, torch.Generator):
        return uniform(mask.shape, generator, mask.device)
    priority = torch.zeros(mask.shape, device=mask.device)
    for i, (one, real) in enumerate(zip(generator, _places(mask), strict=True)):
        priority[i, real] = torch.rand(len(real), generator=one, device=mask.device)
    return priority


def _places(mask: Tensor) -> list[Tensor]:
    """For each sample, the places where ``mask`` (B L) is True, on its device. The host waits once, for all samples."""
    return [row.nonzero()[:, 0].to(mask.device) for row in mask.cpu()]


def where_chosen(chosen_BL: Tensor, tokens: Tensor, others: Tensor) -> Tensor:
    """B L *token_shape: ``tokens`` where chosen, ``others`` elsewhere."""
    return torch.where(chosen_BL.view(*chosen_BL.shape, *[1] * (tokens.dim() - 2)), tokens, others)


def soften(
    logits: Tensor,
    tokens: Tensor,
    settings: ScaleSettings,
    ratio: float,
    generator: Generators,
    kept: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """B L_k V weights of a Gumbel-softmax, cooler at finer scales, as in ``more_smooth`` of published VAR."""
    sharpened = filter_logits(logits / settings.temperature * (1 + ratio), settings.top_k, settings.top_p)
    noise = -torch.log(-torch.log(uniform(logits.shape, generator, logits.device).clamp(1e-20, 1 - 1e-7)))
    temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
    weights = ((sharpened + noise) / temperature).softmax(-1)
    if kept is None:
        return weights
    exact = torch.nn.functional.one_hot(tokens, logits.shape[-1]).to(weights.dtype)
    return torch.where(kept[1][..., None], exact, weights)
