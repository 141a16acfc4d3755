"""The contract suite can fail: each check finds the mistake that it exists for, and says where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale.grid import GridTokenizer
from nextscale.sampling.generate import generate
from nextscale.testing import checks, model_checks, sampling_checks
from nextscale.testing.contract import TokenizerContract
from nextscale.testing.helpers import random_pyramid
from nextscale.testing.properties import PropertyTests
from nextscale.testing.tiny import grid_tokenizer, transformer_for
from nextscale.tokens.inputs import ScaleInput, pack_inputs
from nextscale.tokens.pyramid import Scale, Schedule, TokenPyramid
from nextscale.tokens.space import Codes
from nextscale.transformer import ScaleTransformer
from nextscale.transformer.stem import LinearStem

LABELS = {"label": torch.tensor([0, 1, 2])}


def build(kind: type[GridTokenizer] = GridTokenizer) -> Any:
    return grid_tokenizer((6, 6), kind)


def samples(seed: int = 0) -> Tensor:
    return torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


# One run of each check.


def causality(tokenizer: GridTokenizer, transformer: ScaleTransformer | None = None, changed: int = 1) -> None:
    pyramid = random_pyramid(tokenizer, 3, 0)
    other = random_pyramid(tokenizer, 3, 1, like=pyramid, changed=changed)
    model_checks.check_causality(tokenizer, transformer or transformer_for(tokenizer), pyramid, other, changed, LABELS)


def train_equals_sample(tokenizer: GridTokenizer, transformer: ScaleTransformer | None = None) -> None:
    pyramid = random_pyramid(tokenizer, 3, 0)
    model_checks.check_train_equals_sample(tokenizer, transformer or transformer_for(tokenizer), pyramid, LABELS)


def cached_equals_full(tokenizer: GridTokenizer, transformer: ScaleTransformer | None = None) -> None:
    pyramid = random_pyramid(tokenizer, 3, 0)
    model_checks.check_cached_equals_full(tokenizer, transformer or transformer_for(tokenizer), pyramid, LABELS)


def purity(tokenizer: GridTokenizer) -> None:
    checks.check_purity(tokenizer, random_pyramid(tokenizer, 3, 0))


def telescoping(tokenizer: GridTokenizer) -> None:
    checks.check_telescoping(tokenizer, random_pyramid(tokenizer, 3, 0))


def stage_one(tokenizer: GridTokenizer) -> None:
    checks.check_stage_one(tokenizer, samples())


def prefix(tokenizer: GridTokenizer) -> None:
    checks.check_prefix(tokenizer, random_pyramid(tokenizer, 3, 0))


def ragged(tokenizer: GridTokenizer) -> None:
    images = samples()
    model_checks.check_ragged_equals_single(tokenizer, transformer_for(tokenizer), images.split(1), images, LABELS)


def determinism(tokenizer: GridTokenizer, transformer: ScaleTransformer | None = None) -> None:
    sampling_checks.check_determinism(tokenizer, transformer or transformer_for(tokenizer), 3, 0, LABELS)


def guidance_zero(tokenizer: GridTokenizer) -> None:
    sampling_checks.check_guidance_zero(tokenizer, transformer_for(tokenizer), 3, 0, LABELS)


def edit_known(tokenizer: GridTokenizer) -> None:
    pyramid = random_pyramid(tokenizer, 3, 0)
    keep = torch.rand(pyramid.tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    sampling_checks.check_edit_known(tokenizer, transformer_for(tokenizer), pyramid, keep, 0, LABELS)


def legality(tokenizer: GridTokenizer) -> None:
    sampling_checks.check_legality(tokenizer, transformer_for(tokenizer), 3, 0, LABELS)


ALL = (causality, train_equals_sample, cached_equals_full, purity, telescoping, stage_one, prefix, ragged)
ALL = (*ALL, determinism, guidance_zero, edit_known, legality)


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__)
def test_a_sound_tokenizer_passes(check: Callable[[GridTokenizer], None]):
    check(build())


# Broken tokenizers.


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


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (LeaksFinerScale, causality, "invariant 2 .* scale 1, sample 0, input features"),
        (LeaksFinerScale, train_equals_sample, "invariant 3 .*scale 1, sample 0, input features"),
        (RemembersTheTruth, causality, "invariant 2 .* scale 1, sample 0, input features"),
        (ForcesOtherwise, train_equals_sample, "invariant 3 .*scale 1, sample 0, input features"),
        (MutatesState, purity, "never modified.*scale 0, sample 0, state"),
        (InputAltersState, purity, "never modified.*scale 1, sample 0, state"),
        (Fades, telescoping, "invariant 5 .*scale 1, sample 0, sum"),
        (TrainsOnOtherTokens, stage_one, "invariant 5 .*sample 0, tokens"),
        (NeedsEveryScale, prefix, "invariant 6 .*after 0 scales"),
        (MixesBatchInput, ragged, "invariant 7 .*sample 0: scale [12], logits"),
        (MixesBatchEncoding, ragged, "invariant 7 .*sample [0-2]: scale [0-2], tokens"),
        (MixesBatchInput, determinism, "invariant 10 .*sample 0: scale 1, tokens drawn alone"),
        (Noisy, determinism, "invariant 10 .*scale [12], sample [0-2], tokens drawn again"),
    ],
)
def test_a_broken_tokenizer_is_found(broken: type[GridTokenizer], check: Callable, message: str):
    with pytest.raises(AssertionError, match=message):
        check(build(broken))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (RemembersSamples, "invariant 8 .*sample 0, decoded sample"),
        (LeavesVocabulary, "invariant 8 .*cannot be stored.*vocabulary of 11"),
        (Noisy, "invariant 8 .*decoded sample"),
    ],
)
def test_a_broken_round_trip_is_found(broken: type[GridTokenizer], message: str, tmp_path: Path):
    with pytest.raises(AssertionError, match=message):
        checks.check_round_trip(build(broken), samples(), tmp_path, LABELS, others=samples(1))


def test_a_lossy_tokenizer_is_not_lossless(tmp_path: Path):
    checks.check_round_trip(build(), samples(), tmp_path, LABELS, others=samples(1))
    with pytest.raises(AssertionError, match=r"lossless: sample 0"):
        checks.check_round_trip(build(), samples(), tmp_path, LABELS, lossless=True)


# Broken transformers and samplers.


class Mixing(LinearStem):
    """A stem that blurs along the tokens, and therefore across scales."""

    def forward(self, inputs: ScaleInput, revealed: tuple[Tensor, Tensor] | None) -> tuple[Tensor, None]:
        x_BLD, memory = super().forward(inputs, revealed)
        return x_BLD + x_BLD.roll(-1, 1), memory


@pytest.mark.parametrize(
    ("check", "message"),
    [(causality, "invariant 2 .*logits"), (cached_equals_full, "invariant 4 .*scale [0-2], sample 0, logits")],
)
def test_a_stem_that_mixes_scales_is_found(check: Callable, message: str):
    tokenizer = build()
    with pytest.raises(AssertionError, match=message):
        # Scale 1 holds tokens 1 to 4; its input is blurred with that of scale 2, which depends on scale 1's tokens.
        check(tokenizer, transformer_for(tokenizer, stem=Mixing(4, 16)))


def test_attention_to_finer_scales_is_found():
    tokenizer = build()
    transformer = transformer_for(tokenizer)
    transformer.attention.allowed = lambda query, key: None  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match=r"invariant 2 .*scale 0, sample 0, logits"):
        causality(tokenizer, transformer, changed=0)
    with pytest.raises(AssertionError, match=r"invariant 4 .*scale 0, sample 0, logits"):
        cached_equals_full(tokenizer, transformer)


def test_a_cache_that_hides_coarser_scales_is_found(monkeypatch: pytest.MonkeyPatch):
    tokenizer = build()
    extend = model_checks.KVCache.extend

    def forgetful(self: Any, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = extend(self, layer, k, v)
        return keys, torch.cat([torch.zeros_like(values[:, :, : self.start]), v], 2)

    monkeypatch.setattr(model_checks.KVCache, "extend", forgetful)
    with pytest.raises(AssertionError, match=r"invariant 4 .*scale 1, sample 0, logits"):
        cached_equals_full(tokenizer)


def test_guidance_that_is_never_off_is_found(monkeypatch: pytest.MonkeyPatch):
    def guided(*args: Any) -> Any:
        config = args[4].model_copy(update={"guidance": 3.0})
        return generate(*args[:4], config, *args[5:])

    monkeypatch.setattr(sampling_checks, "generate", guided)
    with pytest.raises(AssertionError, match=r"invariant 11 .*conditional model.*tokens"):
        guidance_zero(build())


def test_an_edit_that_keeps_nothing_is_found(monkeypatch: pytest.MonkeyPatch):
    def forgetful(*args: Any, keep: Tensor, **named: Any) -> Any:
        return generate(*args, keep=torch.zeros_like(keep), **named)

    monkeypatch.setattr(sampling_checks, "generate", forgetful)
    with pytest.raises(AssertionError, match=r"invariant 11 .*all tokens known"):
        edit_known(build())


class KeepsTooLittle(GridTokenizer):
    def keep_tokens(self, keep: Tensor) -> Tensor:
        return super().keep_tokens(keep) & torch.ones(len(keep), self.schedule().length, dtype=torch.bool).tril()


class SplicesNothing(GridTokenizer):
    def splice(self, state: Any, known: Any, keep: Tensor) -> Any:
        return replace(state, f_hat=state.f_hat + 1)


@pytest.mark.parametrize(
    ("broken", "message"), [(KeepsTooLittle, "a token is not kept"), (SplicesNothing, r"tokens .nothing kept")]
)
def test_edits_by_place_that_are_broken_are_found(broken: type[GridTokenizer], message: str):
    tokenizer, keep = build(broken), torch.ones(3, 6, 6, dtype=torch.bool)
    with pytest.raises(AssertionError, match=rf"invariant 11 .*{message}"):
        sampling_checks.check_edit_places(tokenizer, transformer_for(tokenizer), samples(), keep, 0, LABELS)


class IgnoresLegality(Codes):
    """Clamps the logits, so that illegal tokens can be drawn."""

    def draw(self, logits: Tensor, *args: Any) -> Tensor:
        return super().draw(logits.clamp_min(-5.0), *args)


def test_illegal_tokens_are_found():
    tokenizer = build()
    tokenizer.token_space = IgnoresLegality(11)
    with pytest.raises(AssertionError, match=r"invariant 12 .*legality of tokens"):
        legality(tokenizer)


# Broken schedules.


class WrongOffsets(Schedule):
    @property
    def offsets(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(range(len(self.scales) + 1))


def test_broken_schedules_are_found():
    with pytest.raises(AssertionError, match=r"invariant 1 .*scale 1 spans 1 to 2, not 1 to 3"):
        checks.check_schedule(WrongOffsets((Scale((1,)), Scale((2,)), Scale((3,)))))
    with pytest.raises(AssertionError, match=r"invariant 1 .*scale 1 shrinks from"):
        checks.check_schedule(Schedule.of([(2, 2), (1, 4)]), grid=True)
    checks.check_schedule(Schedule.of([(2, 2), (1, 4)]))


# The base class.


def test_every_subclass_has_its_own_properties():
    class One(TokenizerContract):
        examples = 7

    class Two(One):
        examples = 8

    tests = [getattr(kind, "test_causality") for kind in (One, Two)]  # noqa: B009
    assert tests[0] is not tests[1]
    assert [test._hypothesis_internal_use_settings.max_examples for test in tests] == [7, 8]
    assert tests[1].__qualname__.endswith("Two.test_causality")


def test_a_property_that_fails_fails_its_test():
    class Failing(PropertyTests):
        few_examples = 3

        def property_nothing_holds(self, data: Any) -> None:
            raise AssertionError("as it should")

    with pytest.raises(AssertionError, match="as it should"):
        Failing().test_nothing_holds()  # type: ignore[attr-defined]


def test_the_contract_asks_for_fifty_examples():
    assert TokenizerContract.examples >= 50
    assert TokenizerContract.thorough == {"schedule", "causality", "train_equals_sample", "cached_equals_full"}
