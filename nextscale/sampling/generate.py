"""Sampling: run the tokenizer's state machine with the transformer's predictions.

``generate`` draws scale after scale. Given ``known`` tokens, it edits: it takes over kept tokens and draws the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nextscale.config.sections import SamplingConfig
from nextscale.errors import NextscaleError
from nextscale.sampling.candidates import Chooser
from nextscale.sampling.check import check_sampling
from nextscale.sampling.kept import Kept
from nextscale.sampling.predictor import Predictor, guidance_at
from nextscale.sampling.refined import draw_refined
from nextscale.sampling.scale import ScaleSettings, draw_scale, soften
from nextscale.sampling.turns import draw_in_turns
from nextscale.tokens.capabilities import EditsPlaces, MeetsRequirements, MixesCodes, ability
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.space import Generators
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer, Scorer


@dataclass
class Generation:
    """The result of ``generate``.

    Attributes:
        tokens: the tokens of each scale (B L_k).
        states: the state before the first scale, and after each scale.
        masks: for each scale B L_k booleans, False on padding; None if nothing is padded.
        finite: with ``follow``, whether all logits were finite, a boolean on the device.
    """

    tokens: list[Tensor]
    states: list[Any]
    masks: list[Tensor | None] = field(default_factory=list)
    finite: Tensor | None = None

    @property
    def state(self) -> Any:
        return self.states[-1]

    def pyramid(self, schedule: Schedule) -> TokenPyramid:
        return TokenPyramid.pack(self.tokens, schedule)


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
            these tokens of the coarser ones. Training draws so at every step, and must not wait for the device.
            Conditions are then not checked, and whoever asked looks at ``Generation.finite``.

    Raises:
        ConfigError, NextscaleError: settings or conditions that this model cannot take.
    """
    config = config or SamplingConfig()
    conditions = dict(conditions or {})
    if follow is None:
        transformer.conditioner.check(conditions)
    if isinstance(generator, Sequence) and len(generator) != num_samples:
        raise NextscaleError(f"{len(generator)} generators for {num_samples} samples: pass one, or one per sample")
    edit = None if known is None or keep is None else _Edit(tokenizer, known, keep)
    given = follow if known is None else known
    schedule = schedule if given is None else given.schedule
    state = tokenizer.initial_state(num_samples, conditions, schedule) if start is None else start
    check_sampling(config, tokenizer, transformer, tokenizer.num_scales(state), scorer)
    capacity = (schedule or transformer.schedule).length
    predictor = Predictor(transformer, conditions, num_samples, config, capacity)
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
    if follow is None:
        predictor.check()
    else:
        result.finite = predictor.finite()
    return result


class _Edit:
    """Known tokens, and the mask of those that are kept (B L booleans), which the host reads once for all scales."""

    def __init__(self, tokenizer: MultiscaleTokenizer, known: TokenPyramid, keep: Tensor) -> None:
        self.tokenizer, self.known, self.keep = tokenizer, known, keep
        self._open = ~keep.cpu()
        self._redrawn = self._open if known.mask is None else self._open & known.mask.cpu()

    def kept(self, k: int) -> Kept | None:
        """The known tokens of scale k and the mask of those that are kept; None if they do not apply.

        With an adaptive tokenizer, the known tokens of a scale apply only if all tokens up to that scale are kept.
        """
        if self.tokenizer.adaptive and not self._all_kept(k):
            return None
        span = self.known.schedule.span(k)
        return Kept(self.known.scale(k), self.keep[:, span], self._open[:, span].any(1).tolist())

    def _all_kept(self, k: int) -> bool:
        """Whether all tokens of the scales up to and including k are kept."""
        if k >= len(self.known.schedule):
            return False
        return not self._redrawn[:, : self.known.schedule.offsets[k + 1]].any()


def _redraw_until_satisfied(
    tokenizer: MultiscaleTokenizer,
    before: Any,
    k: int,
    tokens: Tensor,
    draw: Callable[[Kept], tuple[Tensor, Tensor | None]],
    kept: Kept | None,
    config: SamplingConfig,
) -> tuple[Tensor, Any]:
    """Tokens B L_k, redrawn for the samples that lose the property ``config.require``, and the state after them."""
    state = tokenizer.update(before, k, tokens)
    if config.require is None:
        return tokens, state
    judge = ability(tokenizer, MeetsRequirements)
    for _ in range(config.tries):
        good_B = judge.satisfies(config.require, state)
        redrawn = [not good for good in good_B.tolist()]
        if not any(redrawn):
            break
        held = good_B[:, None].expand(tokens.shape[:2])
        if kept is not None:
            tokens, held = kept.over(tokens), held | kept.mask
            redrawn = [one and other for one, other in zip(redrawn, kept.redrawn, strict=True)]
        tokens = draw(Kept(tokens, held, redrawn))[0]
        state = tokenizer.update(before, k, tokens)
    return tokens, state
