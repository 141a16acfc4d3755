"""Tokenizers with a defect in their state machine, and the check that must find each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import base
import torch
from base import Defect, build, of
from torch import Tensor

from nextscale.grid import GridTokenizer
from nextscale.tokens.inputs import ScaleInput, pack_inputs
from nextscale.tokens.pyramid import TokenPyramid


class LeaksFinerScale(GridTokenizer):
    """Teacher forcing shows each scale the state after it instead of the state before it."""

    def teacher_forcing(self, pyramid: TokenPyramid, conditions: Any = None) -> ScaleInput:
        inputs = [self.scale_input(state, k) for k, state in enumerate(self.states(pyramid)[1:])]
        return pack_inputs(inputs, len(pyramid), self.feature_dim, None)


class RemembersTheTruth(GridTokenizer):
    """A side channel: the last teacher-forced tokens leak into every input, in training and in sampling."""

    truth = 0.0

    def teacher_forcing(self, pyramid: TokenPyramid, conditions: Any = None) -> ScaleInput:
        self.truth = pyramid.tokens.float().mean()
        return super().teacher_forcing(pyramid, conditions)

    def scale_input(self, state: Any, k: int) -> ScaleInput:
        inputs = super().scale_input(state, k)
        return inputs if inputs.features is None else replace(inputs, features=inputs.features + self.truth)


class ForcesOtherwise(GridTokenizer):
    """Overrides teacher forcing with something that is nearly right."""

    def teacher_forcing(self, pyramid: TokenPyramid, conditions: Any = None) -> ScaleInput:
        inputs = super().teacher_forcing(pyramid, conditions)
        assert inputs.features is not None
        return replace(inputs, features=inputs.features * (1 + 1e-6))


class MutatesState(GridTokenizer):
    def update(self, state: Any, k: int, tokens: Tensor) -> Any:
        state.f_hat.add_(self.pyramid.part(self.pyramid.quantizer.lookup(tokens), k, state.schedule))
        return state


class InputAltersState(GridTokenizer):
    def scale_input(self, state: Any, k: int) -> ScaleInput:
        state.f_hat.mul_(0.5)
        return super().scale_input(state, k)


class Fades(GridTokenizer):
    """The state is not the sum of the parts."""

    def update(self, state: Any, k: int, tokens: Tensor) -> Any:
        return super().update(replace(state, f_hat=0.9 * state.f_hat), k, tokens)


class TrainsOnOtherTokens(GridTokenizer):
    """Encoding sees other features than stage 1."""

    def encode(self, samples: Tensor) -> TokenPyramid:
        return super().encode(samples.flip(-1))


class NeedsEveryScale(GridTokenizer):
    def decode(self, state: Any) -> Tensor:
        decoded = super().decode(state)
        return decoded / (state.f_hat.abs().sum() > self.least).float()

    least = 0.0


class RemembersSamples(GridTokenizer):
    """Decodes to the samples that were encoded last."""

    last = torch.zeros(3, 2, 6, 6)

    def encode(self, samples: Tensor) -> TokenPyramid:
        self.last = samples
        return super().encode(samples)

    def decode(self, state: Any) -> Tensor:
        return self.last


class LeavesVocabulary(GridTokenizer):
    def encode(self, samples: Tensor) -> TokenPyramid:
        pyramid = super().encode(samples)
        return TokenPyramid(pyramid.tokens + 5, pyramid.schedule)


class MixesBatchInput(GridTokenizer):
    """Sample i sees the mean of its batch."""

    def scale_input(self, state: Any, k: int) -> ScaleInput:
        inputs = super().scale_input(state, k)
        if inputs.features is None:
            return inputs
        return replace(inputs, features=inputs.features - inputs.features.mean((0, 1), keepdim=True))


class MixesBatchEncoding(GridTokenizer):
    def features(self, samples: Tensor) -> Tensor:
        return super().features(samples - samples.mean(0))


class Noisy(GridTokenizer):
    """Randomness that depends on no seed."""

    def update(self, state: Any, k: int, tokens: Tensor) -> Any:
        after = super().update(state, k, tokens)
        return replace(after, f_hat=after.f_hat + torch.randn_like(after.f_hat))


DEFECTS = [
    of(LeaksFinerScale, base.causality, "invariant 2 .* scale 1, sample 0, input features"),
    of(LeaksFinerScale, base.train_equals_sample, "invariant 3 .*scale 1, sample 0, input features"),
    of(RemembersTheTruth, base.causality, "invariant 2 .* scale 1, sample 0, input features"),
    of(ForcesOtherwise, base.train_equals_sample, "invariant 3 .*scale 1, sample 0, input features"),
    of(MutatesState, base.purity, "invariant 3 .*never modified.*scale 0, sample 0, state"),
    of(InputAltersState, base.purity, "invariant 3 .*never modified.*scale 1, sample 0, state"),
    of(Fades, base.telescoping, "invariant 5 .*scale 1, sample 0, sum"),
    of(TrainsOnOtherTokens, base.stage_one, "invariant 5 .*sample 0, tokens"),
    of(NeedsEveryScale, base.prefix, "invariant 6 .*after 0 scales"),
    of(MixesBatchInput, base.ragged, "invariant 7 .*sample 0: scale [12], logits"),
    of(MixesBatchEncoding, base.ragged, "invariant 7 .*sample [0-2]: scale [0-2], tokens"),
    of(MixesBatchInput, base.determinism, "invariant 10 .*sample 0: scale 1, tokens drawn alone"),
    of(Noisy, base.determinism, "invariant 10 .*scale [12], sample [0-2], tokens drawn again"),
    *(
        Defect(
            kind.__name__ + "-round_trip", lambda folder, patch, kind=kind: base.round_trip(build(kind), folder), text
        )
        for kind, text in (
            (RemembersSamples, "invariant 8 .*sample 0, decoded sample"),
            (LeavesVocabulary, "invariant 8 .*cannot be stored.*vocabulary of 11"),
            (Noisy, "invariant 8 .*decoded sample"),
        )
    ),
]
