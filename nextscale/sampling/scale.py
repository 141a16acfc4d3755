"""Drawing the tokens of one scale: all at once, or in sub-steps that each reveal some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from nextscale.config.sections import SamplingConfig
from nextscale.errors import ConfigError
from nextscale.sampling.kept import (
    Kept,
    draw_at,
    one_each,
    places_of,
    places_to_draw,
    priorities,
    to_draw,
    where_chosen,
)
from nextscale.sampling.reveal import rank_in_group
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.space import Generators, filter_logits, uniform
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
    kept: Kept | None,
) -> tuple[Tensor, Tensor]:
    """Tokens B L_k of one scale, drawn in ``settings.steps`` sub-steps, and the logits of the last sub-step."""
    space, length = transformer.token_space, inputs.length
    if not transformer.config.in_scale_steps:
        places = places_to_draw(inputs, num_samples, kept, generator)
        logits = predict(None)
        tokens = draw_at(places, space, logits, generator, settings.filters)
        return (tokens if kept is None else kept.over(tokens)), logits

    device, real = inputs.scale_ids.device, to_draw(inputs, num_samples, kept)
    tokens = torch.zeros(num_samples, length, *space.token_shape, dtype=torch.long, device=device)
    known = torch.zeros_like(real)
    if kept is not None:
        tokens, known = kept.over(tokens), kept.mask
    lengths_B1, ranks = real.sum(1, keepdim=True), None
    groups = inputs.groups if settings.reveal == "groups" else None
    # Every sub-step draws the whole scale, of the samples that draw any of it.
    whole = inputs.mask is None and groups is None
    places = None if groups is None and not whole else places_to_draw(inputs, num_samples, kept, generator)
    if groups is not None:
        priority = priorities(places, (num_samples, length), generator, device)
        ranks = rank_in_group(groups, priority, real & ~known)
        if settings.group_steps is not None:
            # Training reveals any number of a group's tokens, so the model knows every such sub-step.
            largest_B1 = ranks.masked_fill(ranks == length, -1).amax(1, keepdim=True) + 1
            at_once_B1 = (largest_B1 / settings.group_steps).ceil().long().clamp_min(1)
            ranks = torch.where(ranks == length, length, ranks // at_once_B1)
        steps_B1 = ranks.masked_fill(known | ~real, -1).amax(1, keepdim=True) + 1
    else:
        steps_B1 = lengths_B1.clamp_max(settings.steps)
    if whole:
        number = min(length, settings.steps) if kept is None or any(kept.redrawn) else 1
    else:
        number = max(1, int(steps_B1.max()))
    logits = None
    for step in range(number):
        logits = predict((tokens, known))
        # Tokens that are not revealed in this sub-step use no random numbers, as far as they are known beforehand.
        drawing = real & (step < steps_B1) if ranks is None else ranks == step
        if not whole:
            places = places_of(drawing) if one_each(generator) else None
        drawn = draw_at(places, space, logits, generator, settings.filters)
        now = drawing
        if ranks is None:
            priority = priorities(places, (num_samples, length), generator, device)
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


def soften(
    logits: Tensor,
    tokens: Tensor,
    settings: ScaleSettings,
    ratio: float,
    generator: Generators,
    kept: Kept | None,
) -> Tensor:
    """B L_k V weights of a Gumbel-softmax, cooler at finer scales, as in ``more_smooth`` of published VAR."""
    sharpened = filter_logits(logits / settings.temperature * (1 + ratio), settings.top_k, settings.top_p)
    noise = -torch.log(-torch.log(uniform(logits.shape, generator, logits.device).clamp(1e-20, 1 - 1e-7)))
    temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
    weights = ((sharpened + noise) / temperature).softmax(-1)
    if kept is None:
        return weights
    exact = torch.nn.functional.one_hot(tokens, logits.shape[-1]).to(weights.dtype)
    return torch.where(kept.mask[..., None], exact, weights)
