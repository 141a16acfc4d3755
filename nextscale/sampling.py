"""Sampling: small functions that run the tokenizer's state machine with the transformer's predictions.

``generate`` draws scale after scale; with ``known`` tokens it edits: kept tokens are taken over, the rest redrawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nextscale.config import SamplingConfig
from nextscale.drawing import ScaleSettings, draw_scale, soften, where_chosen
from nextscale.errors import ConfigError, NextscaleError, unknown
from nextscale.pyramid import Schedule, TokenPyramid
from nextscale.tokenizer import MultiscaleTokenizer, ScaleInput
from nextscale.tokenspace import Codes, Generators
from nextscale.transformer import KVCache, ScaleTransformer

SOME = 16
"""Scales that have all the names there are, where their number depends on what is drawn."""


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


def guidance_at(config: SamplingConfig, k: int, num_scales: int) -> float:
    """t of (1 + t) conditional - t unconditional at scale k."""
    if config.guidance_schedule == "constant" or num_scales == 1:
        return config.guidance
    return config.guidance * k / (num_scales - 1)


def check_sampling(
    config: SamplingConfig, tokenizer: MultiscaleTokenizer, transformer: ScaleTransformer, num_scales: int
) -> None:
    """Raise ConfigError where per-scale settings do not match the scales, or steps need training."""
    names = tokenizer.scale_names(max(num_scales, SOME) if tokenizer.adaptive else num_scales)
    for name in ("temperature", "top_k", "top_p", "steps"):
        value = getattr(config, name)
        for key in value if isinstance(value, dict) else ():
            if key not in names:
                raise ConfigError(f"sampling.{name}: {unknown('scale', key, set(names))}")
        if isinstance(value, tuple) and tokenizer.adaptive:
            raise ConfigError(f"sampling.{name} has {len(value)} values; here scales differ between samples: give one")
        if isinstance(value, tuple) and len(value) != num_scales:
            raise ConfigError(f"sampling.{name} has {len(value)} values; this model has {num_scales} scales")
    steps = config.steps if isinstance(config.steps, tuple) else (config.steps,)
    if (max(steps) > 1 or config.reveal == "groups") and not transformer.config.in_scale_steps:
        what = "steps > 1" if max(steps) > 1 else "reveal=groups"
        raise ConfigError(f"sampling.{what} needs a transformer trained with transformer.in_scale_steps=true")
    if config.require is not None and config.require not in tokenizer.requirements:
        raise ConfigError(f"sampling.require: {unknown('requirement', config.require, tokenizer.requirements)}")
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
    check_sampling(config, tokenizer, transformer, tokenizer.num_scales(state))
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
        settings = ScaleSettings.at(config, k, tokenizer.scale_names(k + 1)[k])
        draw = partial(draw_scale, predict, transformer, inputs, num_samples, settings, generator)
        tokens, logits = draw(kept)
        if config.smooth:
            ratio = k / max(1, tokenizer.num_scales(state) - 1)
            state = tokenizer.update_soft(state, k, soften(logits, tokens, settings, ratio, generator, kept))
        else:
            tokens, state = _required(tokenizer, state, k, tokens, draw, kept, config)
        if anchor is not None and known is not None and keep is not None:
            anchor = tokenizer.update(anchor, k, known.scale(k))
            state = tokenizer.splice(state, anchor, keep)
        result.tokens.append(tokens)
        result.masks.append(inputs.mask)
        result.states.append(state)
        k += 1
    return result


def _known_so_far(known: TokenPyramid, keep: Tensor | None, k: int) -> bool:
    """Whether all tokens of scales up to k are kept."""
    if keep is None or k >= len(known.schedule):
        return False
    stop = known.schedule.offsets[k + 1]
    kept = keep[:, :stop] if known.mask is None else keep[:, :stop] | ~known.mask[:, :stop]
    return bool(kept.all())


def _repeat(inputs: ScaleInput, times: int) -> ScaleInput:
    """The same inputs for the conditional and the unconditional half."""

    def tile(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.cat([tensor] * times)

    coordinates = inputs.coordinates if inputs.coordinates.dim() == 2 else torch.cat([inputs.coordinates] * times)
    features, mask = tile(inputs.features), tile(inputs.mask)
    # A stem of the modality's own sees one half: the other is the same.
    return ScaleInput(features, coordinates, inputs.scale_ids, mask, None, inputs.start, inputs.structure)


def _required(
    tokenizer: MultiscaleTokenizer,
    before: Any,
    k: int,
    tokens: Tensor,
    draw: Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]],
    kept: tuple[Tensor, Tensor] | None,
    config: SamplingConfig,
) -> tuple[Tensor, Any]:
    """Tokens B L_k, drawn again for the samples that ``config.require`` is not true of, and the state after them."""
    state = tokenizer.update(before, k, tokens)
    for _ in range(0 if config.require is None else config.tries):
        good_B = tokenizer.satisfies(str(config.require), state)
        if bool(good_B.all()):
            break
        held = good_B[:, None].expand(tokens.shape[:2])
        if kept is not None:
            tokens, held = where_chosen(kept[1], kept[0], tokens), held | kept[1]
        tokens = draw((tokens, held))[0]
        state = tokenizer.update(before, k, tokens)
    return tokens, state
