"""Defects of transformers, of sampling, of editing while sampling, and of schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import base
import torch
from base import Defect, build, of
from torch import Tensor

from nextscale.grid import GridTokenizer
from nextscale.sampling.generate import generate
from nextscale.testing import checks, model_checks, sampling_checks
from nextscale.testing.tiny import transformer_for
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import Scale, Schedule
from nextscale.tokens.space import Codes
from nextscale.transformer.attention import ScaleAttention
from nextscale.transformer.stem import LinearStem


class Mixing(LinearStem):
    """A stem that blurs along the tokens, and therefore across scales."""

    def forward(self, inputs: ScaleInput, revealed: tuple[Tensor, Tensor] | None) -> tuple[Tensor, None]:
        x_BLD, memory = super().forward(inputs, revealed)
        return x_BLD + x_BLD.roll(-1, 1), memory


def mixing_stem(check: Callable) -> Callable[[Path, Any], None]:
    """Scale 1 holds tokens 1 to 4; its input is blurred with that of scale 2, which depends on scale 1's tokens."""

    def run(folder: Path, patch: Any) -> None:
        tokenizer = build()
        check(tokenizer, transformer_for(tokenizer, stem=Mixing(4, 16)))

    return run


def sees_all(check: Callable) -> Callable[[Path, Any], None]:
    def run(folder: Path, patch: Any) -> None:
        tokenizer = build()
        transformer = transformer_for(tokenizer)
        transformer.attention.allowed = lambda query, key: None  # type: ignore[method-assign]
        check(tokenizer, transformer)

    return run


def forgetful_cache(folder: Path, patch: Any) -> None:
    extend = model_checks.KVCache.extend

    def forgetful(self: Any, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = extend(self, layer, k, v)
        return keys, torch.cat([torch.zeros_like(values[:, :, : self.start]), v], 2)

    patch.setattr(model_checks.KVCache, "extend", forgetful)
    base.cached_equals_full(build())


def always_guided(folder: Path, patch: Any) -> None:
    def guided(*args: Any) -> Any:
        config = args[4].model_copy(update={"guidance": 3.0})
        return generate(*args[:4], config, *args[5:])

    patch.setattr(sampling_checks, "generate", guided)
    base.guidance_zero(build())


def edit_keeps_nothing(folder: Path, patch: Any) -> None:
    def forgetful(*args: Any, keep: Tensor, **named: Any) -> Any:
        return generate(*args, keep=torch.zeros_like(keep), **named)

    patch.setattr(sampling_checks, "generate", forgetful)
    base.edit_known(build())


def attention_as(rule: str, asked: Any) -> Callable[[Path, Any], None]:
    """The transformer attends by ``rule``, although ``asked`` is set."""

    def run(folder: Path, patch: Any) -> None:
        def init(self: ScaleAttention, given: Any) -> None:
            self.rule = rule  # type: ignore[assignment]

        patch.setattr(ScaleAttention, "__init__", init)
        base.attention(build(), asked)

    return run


MATRIX = ((True, False, False), (True, True, False), (False, True, True))


class KeepsTooLittle(GridTokenizer):
    def keep_tokens(self, keep: Tensor) -> Tensor:
        return super().keep_tokens(keep) & torch.ones(len(keep), self.schedule().length, dtype=torch.bool).tril()


class SplicesNothing(GridTokenizer):
    def splice(self, state: Any, known: Any, keep: Tensor) -> Any:
        return replace(state, f_hat=state.f_hat + 1)


class IgnoresLegality(Codes):
    """Clamps the logits, so that illegal tokens can be drawn."""

    def draw(self, logits: Tensor, *args: Any) -> Tensor:
        return super().draw(logits.clamp_min(-5.0), *args)


def illegal(folder: Path, patch: Any) -> None:
    tokenizer = build()
    tokenizer.token_space = IgnoresLegality(11)
    base.legality(tokenizer)


class WrongOffsets(Schedule):
    @property
    def offsets(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(range(len(self.scales) + 1))


def wrong_offsets(folder: Path, patch: Any) -> None:
    checks.check_schedule(WrongOffsets((Scale((1,)), Scale((2,)), Scale((3,)))))


def shrinking(folder: Path, patch: Any) -> None:
    checks.check_schedule(Schedule.of([(2, 2), (1, 4)]), grid=True)


DEFECTS = [
    Defect("stem mixes scales", mixing_stem(base.causality), "invariant 2 .*logits"),
    Defect("stem mixes scales, cached", mixing_stem(base.cached_equals_full), "invariant 4 .*scale [0-2], .*logits"),
    Defect("looks at finer scales", sees_all(lambda t, m: base.causality(t, m, 0)), "invariant 2 .*scale 0, .*logits"),
    Defect("looks at finer scales, cached", sees_all(base.cached_equals_full), "invariant 4 .*scale 0, .*logits"),
    Defect("cache forgets", forgetful_cache, "invariant 4 .*scale 1, sample 0, logits"),
    Defect("guidance is never off", always_guided, "invariant 11 .*conditional model.*tokens"),
    Defect("edit keeps nothing", edit_keeps_nothing, "invariant 11 .*all tokens known"),
    Defect("matrix ignored", attention_as("full", (*MATRIX[:2], (False, False, True))), "invariant 20 .*scale 2"),
    Defect("markov as full", attention_as("full", "markov"), "invariant 20 .*scale 1"),
    Defect("full as markov", attention_as("markov", "full"), "invariant 20 .*scale 1, logits do not change"),
    of(KeepsTooLittle, base.edit_places, "invariant 11 .*a token is not kept"),
    of(SplicesNothing, base.edit_places, r"invariant 11 .*tokens .nothing kept"),
    Defect("illegal tokens", illegal, "invariant 12 .*legality of tokens"),
    Defect("offsets", wrong_offsets, "invariant 1 .*scale 1 spans 1 to 2, not 1 to 3"),
    Defect("shrinking scales", shrinking, "invariant 1 .*scale 1 shrinks from"),
]
