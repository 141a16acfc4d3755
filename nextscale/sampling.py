"""Sampling: small functions that run the tokenizer's state machine with the transformer's predictions.

``generate`` draws scale after scale; with ``known`` tokens it edits: kept tokens are taken over, the rest redrawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from nextscale.config import SamplingConfig
from nextscale.errors import ConfigError, NextscaleError, unknown
from nextscale.pyramid import Schedule, TokenPyramid
from nextscale.reveal import rank_in_group
from nextscale.tokenizer import MultiscaleTokenizer, ScaleInput
from nextscale.tokenspace import Codes, Generators, TokenSpace, filter_logits, uniform
from nextscale.transformer import KVCache, ScaleTransformer

T = TypeVar("T", int, float)


@dataclass
class Generation:
    """What ``generate`` drew: tokens of each scale (B L_k), which of them are no padding (None: all), and the state
    before the first and after each scale."""

    tokens: list[Tensor]
    states: list[Any]
    masks: list[Tensor | None] = field(default_factory=list)

    @property
    def state(self) -> Any:
        return self.states[-1]

    def pyramid(self, schedule: Schedule) -> TokenPyramid:
        return TokenPyramid.pack(self.tokens, schedule)


def at_scale(value: T | Sequence[T], k: int, name: str) -> T:
    """A setting at scale k: itself, or entry k where there is one for each scale."""
    if isinstance(value, int | float):
        return value  # type: ignore[return-value]
    if k >= len(value):
        raise ConfigError(f"sampling.{name} has {len(value)} values, one a scale; there is a scale {k + 1}")
    return value[k]


def guidance_at(config: SamplingConfig, k: int, num_scales: int) -> float:
    """t of (1 + t) conditional - t unconditional at scale k."""
    if config.guidance_schedule == "constant" or num_scales == 1:
        return config.guidance
    return config.guidance * k / (num_scales - 1)


def check_sampling(
    config: SamplingConfig,
    transformer: ScaleTransformer,
    num_scales: int,
    adaptive: bool = False,
    requirements: Sequence[str] = (),
) -> None:
    """Raise ConfigError where per-scale settings do not match the number of scales, or steps need training."""
    for name in ("temperature", "top_k", "top_p", "steps"):
        value = getattr(config, name)
        if isinstance(value, tuple) and adaptive:
            raise ConfigError(f"sampling.{name} has {len(value)} values; here scales differ between samples: give one")
        if isinstance(value, tuple) and len(value) != num_scales:
            raise ConfigError(f"sampling.{name} has {len(value)} values; this model has {num_scales} scales")
    steps = config.steps if isinstance(config.steps, tuple) else (config.steps,)
    if (max(steps) > 1 or config.reveal == "groups") and not transformer.config.in_scale_steps:
        what = "steps > 1" if max(steps) > 1 else "reveal=groups"
        raise ConfigError(f"sampling.{what} needs a transformer trained with transformer.in_scale_steps=true")
    if config.require is not None and config.require not in requirements:
        raise ConfigError(f"sampling.require: {unknown('requirement', config.require, requirements)}")
    if config.require is not None and config.smooth:
        raise ConfigError("sampling.require redraws tokens, of which smooth sampling has none")
    if config.smooth and not isinstance(transformer.token_space, Codes):
        raise ConfigError("sampling.smooth mixes codes: this model's tokens are not codes")


@torch.inference_mode()
def generate(
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer,
    num_samples: int,
    conditions: Mapping[str, Tensor] | None = None,
    config: SamplingConfig | None = None,
    generator: Generators = None,
    schedule: Schedule | None = None,
    known: TokenPyramid | None = None,
    keep: Tensor | None = None,
    anchored: bool = False,
    start: Any = None,
) -> Generation:
    """Draw ``num_samples`` samples.

    Args:
        conditions: tensors with first axis B; an absent one is null.
        generator: one for the batch, or one a sample (then sample i does not depend on its batch mates).
        schedule: other than the tokenizer's default (needs positions computed from coordinates).
        known, keep: editing: where ``keep`` (B L booleans) is True, the token of ``known`` is taken.
        anchored: also hold the state, at the places that are kept at the finest scale, to what it is under ``known``
            alone. Tokens drawn at coarse scales reach into what is kept, and would leave its finer tokens, which were
            chosen to follow others, out of place. (The states are then more than the tokens tell.)
        start: a state to go on from (``tokenizer.begin_with``), instead of the initial one.

    Raises:
        ConfigError, NextscaleError: settings or conditions that this model cannot take.
    """
    config = config or SamplingConfig()
    conditions = dict(conditions or {})
    transformer.conditioner.check(conditions)
    if isinstance(generator, Sequence) and len(generator) != num_samples:
        raise NextscaleError(f"{len(generator)} generators for {num_samples} samples: pass one, or one a sample")
    schedule = schedule if known is None else known.schedule
    state = tokenizer.initial_state(num_samples, conditions, schedule) if start is None else start
    check_sampling(config, transformer, tokenizer.num_scales(state), tokenizer.adaptive, tokenizer.requirements)
    cond_BD = transformer.conditioner(conditions, num_samples)
    guided = config.guidance > 0 and transformer.conditioner.guides(conditions)
    if guided:
        cond_BD = torch.cat([cond_BD, transformer.conditioner({}, num_samples)])
    modulation = transformer.modulation(cond_BD)
    cache = KVCache((schedule or transformer.schedule).length)
    result = Generation([], [state])
    anchor = state if anchored and known is not None and keep is not None else None
    k = 0 if start is None else tokenizer.num_scales(start) - 1
    while k < tokenizer.num_scales(state):
        inputs = tokenizer.scale_input(state, k)
        guidance = guidance_at(config, k, tokenizer.num_scales(state)) if guided else 0.0

        def predict(
            revealed: tuple[Tensor, Tensor] | None,
            inputs: ScaleInput = inputs,
            guidance: float = guidance,
        ) -> Tensor:
            doubled = _repeat(inputs, 2) if guided else inputs
            if guided and revealed is not None:
                revealed = (torch.cat([revealed[0]] * 2), torch.cat([revealed[1]] * 2))
            logits = transformer(doubled, modulation, cache, revealed)
            if guided:
                logits, null = logits.chunk(2)
                logits = (1 + guidance) * logits - guidance * null
            return logits if inputs.legal is None else logits.masked_fill(~inputs.legal, -torch.inf)

        kept = None
        # Of an adaptive tokenizer, known tokens have a place only as long as all before them were known.
        whole = known is not None and (not tokenizer.adaptive or _known_so_far(known, keep, k))
        if known is not None and keep is not None and whole:
            kept = (known.scale(k), keep[:, known.schedule.span(k)])
        tokens, logits = draw_scale(predict, transformer, inputs, num_samples, config, k, generator, kept)
        if config.smooth:
            ratio = k / max(1, tokenizer.num_scales(state) - 1)
            state = tokenizer.update_soft(state, k, _soft(logits, tokens, config, k, ratio, generator, kept))
        else:
            before, state = state, tokenizer.update(state, k, tokens)
            for _ in range(config.tries if config.require is not None else 0):
                good = tokenizer.satisfies(str(config.require), state)
                if bool(good.all()):
                    break
                stays = good[:, None].expand(tokens.shape[:2])
                held = (tokens, stays) if kept is None else (_where(kept[1], kept[0], tokens), stays | kept[1])
                tokens, logits = draw_scale(predict, transformer, inputs, num_samples, config, k, generator, held)
                state = tokenizer.update(before, k, tokens)
        if anchor is not None and known is not None and keep is not None:
            anchor = tokenizer.update(anchor, k, known.scale(k))
            state = tokenizer.splice(state, anchor, keep)
        result.tokens.append(tokens)
        result.masks.append(inputs.mask)
        result.states.append(state)
        k += 1
    return result


def draw_scale(
    predict: Callable[[tuple[Tensor, Tensor] | None], Tensor],
    transformer: ScaleTransformer,
    inputs: ScaleInput,
    num_samples: int,
    config: SamplingConfig,
    k: int,
    generator: Generators,
    kept: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Tokens B L_k of one scale, in ``config.steps`` sub-steps, and the logits of the last."""
    space, length = transformer.token_space, inputs.length
    settings = (
        at_scale(config.temperature, k, "temperature"),
        at_scale(config.top_k, k, "top_k"),
        at_scale(config.top_p, k, "top_p"),
    )
    device = inputs.scale_ids.device
    real = torch.ones(num_samples, length, dtype=torch.bool, device=device) if inputs.mask is None else inputs.mask
    if kept is not None:  # of a sample that keeps all its tokens, nothing is drawn
        real = real & (real & ~kept[1]).any(1, keepdim=True)
    if not transformer.config.in_scale_steps:
        logits = predict(None)
        tokens = draw_real(space, logits, None if kept is None and inputs.mask is None else real, generator, settings)
        return (tokens if kept is None else _where(kept[1], kept[0], tokens)), logits

    tokens = torch.zeros(num_samples, length, *space.token_shape, dtype=torch.long, device=device)
    known = torch.zeros_like(real)
    if kept is not None:
        tokens, known = _where(kept[1], kept[0], tokens), kept[1]
    lengths_B1, ranks = real.sum(1, keepdim=True), None
    if config.reveal == "groups" and inputs.groups is not None:
        ranks = rank_in_group(inputs.groups, _priority(real, generator), real & ~known)
        steps_B1 = ranks.masked_fill(known | ~real, -1).amax(1, keepdim=True) + 1
    else:
        steps_B1 = lengths_B1.clamp_max(at_scale(config.steps, k, "steps"))
    logits = None
    for step in range(max(1, int(steps_B1.max()))):
        logits = predict((tokens, known))
        drawing = real & (step < steps_B1)  # a sample whose sub-steps are over uses no more random numbers
        drawn = draw_real(space, logits, drawing, generator, settings)
        if ranks is not None:
            now = (ranks == step) & ~known
        else:
            priority = _priority(drawing, generator)
            if config.reveal == "confidence":
                # A little chance, or rounding errors would choose among equally confident tokens.
                priority = 1e-3 * priority - space.loss(logits, drawn)
            # Known tokens first, then the best of the rest, up to this sub-step's share of the scale.
            order = priority.masked_fill(known, torch.inf).masked_fill(~real, -torch.inf)
            order = order.argsort(1, descending=True).argsort(1)
            now = drawing & ~known & (order < lengths_B1 * (step + 1) // steps_B1.clamp_min(1))
        tokens, known = _where(now, drawn, tokens), known | now
    assert logits is not None
    return tokens, logits


def draw_real(
    space: TokenSpace,
    logits: Tensor,
    mask: Tensor | None,
    generator: Generators,
    settings: tuple[float, int, float],
) -> Tensor:
    """``space.draw``; with one generator a sample, the numbers it uses do not depend on how far a batch is padded."""
    if mask is None or generator is None or isinstance(generator, torch.Generator):
        return space.draw(logits, generator, *settings)
    drawn = torch.zeros(*logits.shape[:2], *space.token_shape, dtype=torch.long, device=logits.device)
    for i, one in enumerate(generator):
        real = mask[i]
        if bool(real.any()):
            drawn[i, real] = space.draw(logits[i, real][None], [one], *settings)[0]
    return drawn


def _priority(mask: Tensor, generator: Generators) -> Tensor:
    """B L uniform numbers, as ``draw_real`` draws."""
    if generator is None or isinstance(generator, torch.Generator):
        return uniform(mask.shape, generator, mask.device)
    priority = torch.zeros(mask.shape, device=mask.device)
    for i, one in enumerate(generator):
        priority[i, mask[i]] = torch.rand(int(mask[i].sum()), generator=one, device=mask.device)
    return priority


def _known_so_far(known: TokenPyramid, keep: Tensor | None, k: int) -> bool:
    """Whether all tokens of scales up to k are kept."""
    if keep is None or k >= len(known.schedule):
        return False
    stop = known.schedule.offsets[k + 1]
    kept = keep[:, :stop] if known.mask is None else keep[:, :stop] | ~known.mask[:, :stop]
    return bool(kept.all())


def _where(chosen_BL: Tensor, tokens: Tensor, others: Tensor) -> Tensor:
    """B L *token_shape: ``tokens`` where chosen, ``others`` elsewhere."""
    return torch.where(chosen_BL.view(*chosen_BL.shape, *[1] * (tokens.dim() - 2)), tokens, others)


def _repeat(inputs: ScaleInput, times: int) -> ScaleInput:
    """The same inputs for the conditional and the unconditional half."""

    def tile(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.cat([tensor] * times)

    coordinates = inputs.coordinates if inputs.coordinates.dim() == 2 else torch.cat([inputs.coordinates] * times)
    features, mask = tile(inputs.features), tile(inputs.mask)
    # A stem of the modality's own sees one half: the other is the same.
    return ScaleInput(features, coordinates, inputs.scale_ids, mask, None, inputs.start, inputs.structure)


def _soft(
    logits: Tensor,
    tokens: Tensor,
    config: SamplingConfig,
    k: int,
    ratio: float,
    generator: Generators,
    kept: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """B L_k V weights of a Gumbel-softmax, cooler at finer scales, as published VAR's ``more_smooth``."""
    settings = (at_scale(config.top_k, k, "top_k"), at_scale(config.top_p, k, "top_p"))
    sharpened = logits / at_scale(config.temperature, k, "temperature") * (1 + ratio)
    noise = -torch.log(-torch.log(uniform(logits.shape, generator, logits.device).clamp(1e-20, 1 - 1e-7)))
    temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
    weights = ((filter_logits(sharpened, *settings) + noise) / temperature).softmax(-1)
    if kept is None:
        return weights
    exact = torch.nn.functional.one_hot(tokens, logits.shape[-1]).to(weights.dtype)
    return torch.where(kept[1][..., None], exact, weights)
