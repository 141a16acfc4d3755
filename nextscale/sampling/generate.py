"""Sampling: run the tokenizer's state machine with the transformer's predictions.

``generate`` draws scale after scale. Given ``known`` tokens, it edits: it takes over kept tokens and draws the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nextscale.config.sections import SamplingConfig
from nextscale.errors import ConfigError, NextscaleError, unknown
from nextscale.sampling.candidates import Chooser, check_candidates
from nextscale.sampling.refined import draw_refined
from nextscale.sampling.scale import ScaleSettings, draw_scale, soften, where_chosen
from nextscale.sampling.turns import draw_in_turns
from nextscale.tokens.capabilities import EditsPlaces, MeetsRequirements, MixesCodes, ability
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.space import Codes, Generators
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import DrawNext, KVCache, ScaleTransformer, Scorer


@dataclass
class Generation:
    """The result of ``generate``.

    Attributes:
        tokens: the tokens of each scale (B L_k).
        states: the state before the first scale, and after each scale.
        masks: for each scale B L_k booleans, False on padding; None if nothing is padded.
    """

    tokens: list[Tensor]
    states: list[Any]
    masks: list[Tensor | None] = field(default_factory=list)

    @property
    def state(self) -> Any:
        return self.states[-1]

    def pyramid(self, schedule: Schedule) -> TokenPyramid:
        return TokenPyramid.pack(self.tokens, schedule)


def guidance_at(config: SamplingConfig, k: int, num_scales: int) -> float:
    """Guidance t at scale k: logits are (1 + t) conditional - t unconditional."""
    if config.guidance_schedule == "constant" or num_scales == 1:
        return config.guidance
    return config.guidance * k / (num_scales - 1)


def check_sampling(
    config: SamplingConfig,
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer,
    num_scales: int,
    scorer: Scorer | None = None,
) -> None:
    """Raise ConfigError if per-scale settings do not match the scales, or this model does not support a setting."""
    check_candidates(config, scorer)
    names = tokenizer.every_scale_name(num_scales)
    for name in ("temperature", "top_k", "top_p", "steps", "group_steps"):
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
    if max(steps) > 1 and config.reveal != "groups" and tokenizer.in_turns:
        raise ConfigError(
            f"sampling.reveal={config.reveal} with steps > 1 draws tokens in any order, but this model has learned the "
            "order of its tokenizer's groups: set sampling.reveal=groups (group_steps limits its sub-steps)"
        )
    if config.group_steps is not None and config.reveal != "groups":
        raise ConfigError(f"sampling.group_steps has no effect with reveal={config.reveal}: set sampling.reveal=groups")
    if transformer.refiner is not None and config.smooth:
        raise ConfigError(
            "sampling.smooth mixes codes, but this model's refiner looks at the tokens drawn before: set smooth=false"
        )
    known = tokenizer.requirements if isinstance(tokenizer, MeetsRequirements) else ()
    if config.require is not None and config.require not in known:
        raise ConfigError(f"sampling.require: {unknown('requirement', config.require, known)}")
    if config.require is not None and config.smooth:
        raise ConfigError("sampling.require redraws tokens, and smooth sampling has none: set smooth=false")
    if config.smooth and not (isinstance(transformer.token_space, Codes) and isinstance(tokenizer, MixesCodes)):
        raise ConfigError("sampling.smooth mixes codes, which this model's tokenizer cannot do: set smooth=false")


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
    scorer: Scorer | None = None,
    follow: TokenPyramid | None = None,
) -> Generation:
    """Draw ``num_samples`` samples.

    Args:
        conditions: tensors with first axis B; an absent condition is null.
        generator: one for the batch, or one per sample (sample i then does not depend on the rest of its batch).
        schedule: replaces the tokenizer's default (needs positions computed from coordinates).
        known, keep: for editing: where ``keep`` (B L booleans) is True, the token of ``known`` is taken.
        anchored: also fix the state, at the places that are kept at the finest scale, to its value under ``known``
            alone. Otherwise newly drawn coarse tokens would reach into the kept part, and its finer tokens, which were
            chosen to follow other coarse tokens, would no longer fit. (The states then hold more information than the
            tokens.)
        start: a state to continue from (``Completes.begin_with``), instead of the initial state.
        scorer: chooses between ``config.candidates`` token maps at every scale.
        follow: teacher forcing: the tokens that the state absorbs, whatever is drawn. So each scale is drawn given
            these tokens of the coarser ones.

    Raises:
        ConfigError, NextscaleError: settings or conditions that this model cannot take.
    """
    config = config or SamplingConfig()
    conditions = dict(conditions or {})
    transformer.conditioner.check(conditions)
    if isinstance(generator, Sequence) and len(generator) != num_samples:
        raise NextscaleError(f"{len(generator)} generators for {num_samples} samples: pass one, or one per sample")
    edit = None if known is None or keep is None else _Edit(tokenizer, known, keep)
    given = follow if known is None else known
    schedule = schedule if given is None else given.schedule
    state = tokenizer.initial_state(num_samples, conditions, schedule) if start is None else start
    check_sampling(config, tokenizer, transformer, tokenizer.num_scales(state), scorer)
    capacity = (schedule or transformer.schedule).length
    predictor = _Predictor(transformer, conditions, num_samples, config, capacity)
    draw_whole, draw_one_by_one = draw_scale, draw_refined
    if scorer is not None and config.candidates > 1:
        chooser = Chooser(scorer, conditions, num_samples, config.candidates)
        draw_whole, draw_one_by_one = chooser.draw_scale, chooser.draw_refined
    result = Generation([], [state])
    anchor = state if anchored and edit is not None else None
    k = 0 if start is None else tokenizer.num_scales(start) - 1
    while k < tokenizer.num_scales(state):
        inputs, num_scales = tokenizer.scale_input(state, k), tokenizer.num_scales(state)
        kept = None if edit is None else edit.kept(k)
        settings = ScaleSettings.at(config, k, tokenizer.scale_names(k + 1)[k])
        guidance = guidance_at(config, k, num_scales)
        if transformer.refiner is not None and transformer.refiner.refines(inputs):
            run = partial(predictor.one_by_one, inputs, guidance)
            draw = partial(draw_one_by_one, run, transformer.token_space, inputs, num_samples, settings, generator)
        elif settings.reveal == "groups" and inputs.turns is not None:
            predict = partial(predictor, inputs, guidance)
            draw = partial(draw_in_turns, predict, transformer.token_space, inputs, num_samples, settings, generator)
        else:
            predict = partial(predictor, inputs, guidance)
            draw = partial(draw_whole, predict, transformer, inputs, num_samples, settings, generator)
        tokens, logits = draw(kept)
        if tokenizer.adaptive:  # what comes next may depend on the tokens
            predictor.check()
        if follow is not None:
            state = tokenizer.update(state, k, follow.scale(k))
        elif config.smooth:
            assert logits is not None
            weights = soften(logits, tokens, settings, k / max(1, num_scales - 1), generator, kept)
            state = ability(tokenizer, MixesCodes).update_soft(state, k, weights)
        else:
            tokens, state = _redraw_until_satisfied(tokenizer, state, k, tokens, draw, kept, config)
        if anchor is not None and edit is not None:
            anchor = tokenizer.update(anchor, k, edit.known.scale(k))
            state = ability(tokenizer, EditsPlaces).splice(state, anchor, edit.keep)
        result.tokens.append(tokens)
        result.masks.append(inputs.mask)
        result.states.append(state)
        k += 1
    predictor.check()
    return result


class _Predictor:
    """The transformer under conditions and guidance: sets up what all scales share, and predicts one scale per call."""

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

        def here(mask: Tensor | None, i: int) -> Tensor | None:
            return None if mask is None else mask[:, i : i + 1].repeat_interleave(times, 0)

        def next_token(i: int, logits: Tensor) -> Tensor:
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
        finite = bool(torch.cat(self._largest).isfinite().all()) if self._largest else True
        self._largest.clear()
        if not finite:
            raise NextscaleError(
                "the transformer's logits are not finite, or a token has no legal value: its weights are damaged, its "
                "training has diverged, or its precision is too low"
            )


@dataclass(frozen=True)
class _Edit:
    """Known tokens, and the mask of those that are kept (B L booleans)."""

    tokenizer: MultiscaleTokenizer
    known: TokenPyramid
    keep: Tensor

    def kept(self, k: int) -> tuple[Tensor, Tensor] | None:
        """The known tokens of scale k and the mask of those that are kept; None if they do not apply.

        With an adaptive tokenizer, the known tokens of a scale apply only if all tokens up to that scale are kept.
        """
        if self.tokenizer.adaptive and not self._all_kept(k):
            return None
        return self.known.scale(k), self.keep[:, self.known.schedule.span(k)]

    def _all_kept(self, k: int) -> bool:
        """Whether all tokens of the scales up to and including k are kept."""
        if k >= len(self.known.schedule):
            return False
        stop, mask = self.known.schedule.offsets[k + 1], self.known.mask
        kept = self.keep[:, :stop] if mask is None else self.keep[:, :stop] | ~mask[:, :stop]
        return bool(kept.all())


def _doubled(inputs: ScaleInput) -> ScaleInput:
    """The same inputs for both the conditional and the unconditional half of guidance.

    The input of a modality's own stem is not doubled: the stem sees one half, and the other half is the same.
    """

    def tile(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.cat([tensor] * 2)

    number = inputs.num_samples if inputs.features is None else 2 * inputs.num_samples
    coordinates = inputs.coordinates if inputs.coordinates.dim() == 2 else torch.cat([inputs.coordinates] * 2)
    doubled = {"features": tile(inputs.features), "mask": tile(inputs.mask), "coordinates": coordinates}
    return replace(inputs, num_samples=number, **doubled)


def _redraw_until_satisfied(
    tokenizer: MultiscaleTokenizer,
    before: Any,
    k: int,
    tokens: Tensor,
    draw: Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor | None]],
    kept: tuple[Tensor, Tensor] | None,
    config: SamplingConfig,
) -> tuple[Tensor, Any]:
    """Tokens B L_k, redrawn for the samples that lose the property ``config.require``, and the state after them."""
    state = tokenizer.update(before, k, tokens)
    if config.require is None:
        return tokens, state
    judge = ability(tokenizer, MeetsRequirements)
    for _ in range(config.tries):
        good_B = judge.satisfies(config.require, state)
        if bool(good_B.all()):
            break
        held = good_B[:, None].expand(tokens.shape[:2])
        if kept is not None:
            tokens, held = where_chosen(kept[1], kept[0], tokens), held | kept[1]
        tokens = draw((tokens, held))[0]
        state = tokenizer.update(before, k, tokens)
    return tokens, state
