"""The contract of a tokenizer and a transformer built on it, as a base class of pytest tests.

``behaviour.BehaviourTests`` holds the tests of invariants 13 to 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

import torch
from hypothesis import strategies as st
from torch import Tensor

from nextscale.conditioning import ConditionSpec
from nextscale.config.sections import SamplingConfig, TransformerConfig
from nextscale.errors import ConfigError
from nextscale.testing import checks, model_checks, refiner_checks, sampling_checks, scorer_checks, strategies
from nextscale.testing.behaviour import BehaviourTests
from nextscale.testing.helpers import random_pyramid, row_of
from nextscale.testing.tiny import scorer_for, transformer_for
from nextscale.tokens.capabilities import AddsParts, EditsPlaces, MeetsRequirements, TakesSizes
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.space import Codes
from nextscale.tokens.stem import Stem
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer, Scorer


class TokenizerContract(BehaviourTests):
    """Invariants 1 to 8 and 10 to 20 of a tokenizer. Subclass it as ``Test...`` and write two methods."""

    condition_specs: ClassVar[Sequence[ConditionSpec]] = (
        ConditionSpec(name="label", size=3),
        ConditionSpec(name="vector", kind="vector", size=2),
    )
    lossless: ClassVar[bool] = False
    """decode(encode(samples)) is exactly ``samples``."""
    reconstructs: ClassVar[bool | None] = None
    """Whether decoded samples must be nearer to their own originals than to others (on average). None holds tokenizers
    without weights to it: with the random weights of a test, a tokenizer cannot reconstruct."""
    on_grid: ClassVar[bool | None] = None
    """Whether coordinates must be the centres of the schedule's cells. None: if the tokenizer edits by place or takes
    several sizes, or its scales have two axes or more."""
    max_samples: ClassVar[int] = 3

    # What a plugin must write.

    def build_tokenizer(self) -> MultiscaleTokenizer:
        """A tiny tokenizer. Give its codebook weights of O(1), so that a wrong token makes a difference."""
        raise NotImplementedError

    def samples(self, tokenizer: MultiscaleTokenizer, num_samples: int, seed: int) -> Any:
        """A batch of samples, as ``encode`` takes it."""
        raise NotImplementedError

    # What it may override.

    def build_tokenizers(self) -> list[MultiscaleTokenizer]:
        """Variants of the tokenizer; each example draws one of them."""
        return [self.build_tokenizer()]

    def schedules(self, tokenizer: MultiscaleTokenizer) -> st.SearchStrategy[Schedule | None]:
        return strategies.schedules_for(tokenizer)

    def transformer_configs(self, num_scales: int, in_scale_steps: bool | None) -> st.SearchStrategy[TransformerConfig]:
        return strategies.transformer_configs(num_scales, in_scale_steps)

    def build_stem(self, tokenizer: MultiscaleTokenizer, width: int) -> Stem | None:
        """The modality's own stem; None means the linear layer."""
        return tokenizer.build_stem(width)

    def ragged(self, tokenizer: MultiscaleTokenizer, seed: int) -> tuple[list[Any], Any] | None:
        """Samples of different sizes, each as a batch of one, and all in one batch; None if sizes are equal."""
        return None

    def singles(self, samples: Any, num_samples: int) -> list[Any] | None:
        """Each sample of a batch, as a batch of one; None if batches cannot be taken apart."""
        singles = [row_of(samples, i) for i in range(num_samples)]
        return None if any(single is None for single in singles) else singles

    def check_samples(self, samples: Any, num_samples: int) -> None:
        """Assert that decoded samples, complete or coarse, are valid samples of the modality."""

    def conditions(self, num_samples: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        drawn = {}
        for spec in self.condition_specs:
            if spec.kind == "class":
                drawn[spec.name] = torch.randint(spec.size, (num_samples,), generator=generator)
            else:
                drawn[spec.name] = torch.randn(num_samples, spec.size, generator=generator)
        return drawn

    # What the properties draw.

    def draw_tokenizer(self, data: st.DataObject) -> MultiscaleTokenizer:
        cls = type(self)
        if "_built" not in cls.__dict__:
            cls._built = [tokenizer.eval() for tokenizer in self.build_tokenizers()]  # type: ignore[attr-defined]
        return cls._built[data.draw(st.integers(0, len(cls._built) - 1), "tokenizer")]  # type: ignore[attr-defined]

    def draw_pyramid(self, data: st.DataObject) -> tuple[MultiscaleTokenizer, TokenPyramid, dict[str, Tensor], int]:
        """A tokenizer, random tokens, their conditions, and a seed."""
        tokenizer = self.draw_tokenizer(data)
        number, seed = data.draw(st.integers(1, self.max_samples), "samples"), data.draw(strategies.seeds(), "seed")
        conditions = self.conditions(number, seed) if data.draw(st.booleans(), "conditioned") else {}
        schedule = data.draw(self.schedules(tokenizer), "schedule")
        return tokenizer, random_pyramid(tokenizer, number, seed, conditions, schedule), conditions, seed

    def draw_transformer(
        self,
        data: st.DataObject,
        tokenizer: MultiscaleTokenizer,
        pyramid: TokenPyramid,
        in_scale_steps: bool | None = None,
    ) -> ScaleTransformer:
        schedule = pyramid.schedule
        config = data.draw(self.transformer_configs(len(schedule), in_scale_steps), "transformer")
        if tokenizer.adaptive:  # every batch has its own schedule
            rule = config.attention if isinstance(config.attention, str) else "full"
            free = {"positions": "rotary", "scale_embedding": False, "attention": rule}
            config = config.model_copy(update=free)
        stem = self.build_stem(tokenizer, config.model_width)
        if stem is not None and stem.complete and not self.refines(stem):
            config = config.model_copy(update={"refiner": None})
        if stem is not None or tokenizer.codebook is None:
            config = config.model_copy(update={"known_tokens": "embedding"})
        weights = data.draw(strategies.seeds(), "weights")
        return transformer_for(tokenizer, self.condition_specs, schedule, stem, config, weights)

    @staticmethod
    def refines(stem: Stem) -> bool:
        """Whether a stem of the modality's own takes a refiner."""
        try:
            return stem.build_refinement(8) is not None
        except ConfigError:
            return False

    @staticmethod
    def sampling_configs(
        tokenizer: MultiscaleTokenizer, pyramid: TokenPyramid, transformer: ScaleTransformer, extreme: bool = False
    ) -> st.SearchStrategy[SamplingConfig]:
        """Settings that the two models support: with one value for all scales, or one per scale where their number is
        fixed."""
        num_scales = None if tokenizer.adaptive else len(pyramid.schedule)
        steps, order = transformer.config.in_scale_steps, tokenizer.group_order
        return strategies.sampling_configs(num_scales, steps, extreme, order)

    @staticmethod
    def draw_candidates(
        data: st.DataObject, tokenizer: MultiscaleTokenizer, transformer: ScaleTransformer, config: SamplingConfig
    ) -> tuple[SamplingConfig, Scorer | None]:
        """Sampling settings with up to 3 candidates, and their scorer; None where there can be none."""
        scorer, steps = scorer_for(tokenizer, transformer), config.steps
        if scorer is None or config.reveal == "groups" or max(steps if isinstance(steps, tuple) else (steps,)) > 1:
            return config, None
        return config.model_copy(update={"candidates": data.draw(st.integers(1, 3), "candidates")}), scorer

    # The invariants.

    def property_schedule(self, data: st.DataObject) -> None:
        tokenizer = self.draw_tokenizer(data)
        schedule = data.draw(self.schedules(tokenizer), "schedule") or tokenizer.schedule()
        encoded = tokenizer.encode(self.samples(tokenizer, 1, data.draw(strategies.seeds(), "seed")))
        for each in (schedule, encoded.schedule):
            checks.check_schedule(each)
            if isinstance(tokenizer, TakesSizes):
                for part in tokenizer.pyramids(each):
                    checks.check_schedule(part, grid=True)

    def property_causality(self, data: st.DataObject) -> None:
        tokenizer, pyramid, conditions, seed = self.draw_pyramid(data)
        transformer = self.draw_transformer(data, tokenizer, pyramid)
        j = data.draw(st.integers(0, len(pyramid.schedule) - 1), "changed scale")
        changed = random_pyramid(tokenizer, len(pyramid), seed + 1, conditions, like=pyramid, changed=j)
        model_checks.check_causality(tokenizer, transformer, pyramid, changed, j, conditions)
        refiner_checks.check_context(tokenizer, transformer, pyramid, changed.scale(j), j, conditions)
        scorer = scorer_for(tokenizer, transformer)
        if scorer is not None:
            scorer_checks.check_scored_tokens(tokenizer, scorer, pyramid, changed, j, conditions)

    def property_train_equals_sample(self, data: st.DataObject) -> None:
        tokenizer, pyramid, conditions, seed = self.draw_pyramid(data)
        transformer = self.draw_transformer(data, tokenizer, pyramid)
        steps = transformer.config.in_scale_steps
        config = data.draw(self.sampling_configs(tokenizer, pyramid, transformer), "sampling")
        whole = pyramid.mask is not None or tokenizer.adaptive
        keep = None if whole else data.draw(st.none() | strategies.keep_masks(pyramid))
        model_checks.check_train_equals_sample(tokenizer, transformer, pyramid, conditions, config, keep, seed)
        if not steps:
            refiner_checks.check_likelihood(tokenizer, transformer, pyramid, seed, conditions)
        scorer = scorer_for(tokenizer, transformer)
        if scorer is not None:
            scorer_checks.check_scores(tokenizer, scorer, pyramid, conditions)

    def property_purity(self, data: st.DataObject) -> None:
        tokenizer, pyramid, conditions, _ = self.draw_pyramid(data)
        checks.check_purity(tokenizer, pyramid, conditions)

    def property_cached_equals_full(self, data: st.DataObject) -> None:
        tokenizer, pyramid, conditions, _ = self.draw_pyramid(data)
        transformer = self.draw_transformer(data, tokenizer, pyramid)
        known = data.draw(strategies.keep_masks(pyramid)) if transformer.config.in_scale_steps else None
        capacity = data.draw(st.sampled_from([0, 1, pyramid.schedule.length]), "capacity")
        model_checks.check_cached_equals_full(tokenizer, transformer, pyramid, conditions, known, capacity)

    def property_telescoping(self, data: st.DataObject) -> None:
        tokenizer, pyramid, _, seed = self.draw_pyramid(data)
        if not isinstance(tokenizer, AddsParts):
            raise SkipTest("telescoping: this tokenizer's state is not a sum of parts")
        checks.check_telescoping(tokenizer, pyramid)
        checks.check_stage_one(tokenizer, self.samples(tokenizer, len(pyramid), seed))

    def property_prefix(self, data: st.DataObject) -> None:
        tokenizer, pyramid, conditions, _ = self.draw_pyramid(data)
        for samples in checks.check_prefix(tokenizer, pyramid, conditions):
            self.check_samples(samples, len(pyramid))

    def property_ragged_equals_single(self, data: st.DataObject) -> None:
        tokenizer = self.draw_tokenizer(data)
        found = self.ragged(tokenizer, data.draw(strategies.seeds(), "seed"))
        if found is None:
            raise SkipTest("ragged = single: this modality's batches hold samples of one size")
        singles, joined = found
        transformer = self.draw_transformer(data, tokenizer, tokenizer.encode(joined))
        conditions = self.conditions(len(singles), 0)
        model_checks.check_ragged_equals_single(tokenizer, transformer, singles, joined, conditions)

    def test_round_trip(self, tmp_path: Path) -> None:
        for number, tokenizer in enumerate(self.build_tokenizers()):
            folder = tmp_path / str(number)
            samples, others = (self.samples(tokenizer.eval(), self.max_samples, seed) for seed in (0, 1))
            conditions = self.conditions(self.max_samples, 0)
            checks.check_round_trip(tokenizer, samples, folder, conditions, self.lossless, others)

    def property_determinism(self, data: st.DataObject) -> None:
        tokenizer, pyramid, conditions, seed = self.draw_pyramid(data)
        transformer = self.draw_transformer(data, tokenizer, pyramid)
        config = data.draw(self.sampling_configs(tokenizer, pyramid, transformer), "sampling")
        known = tokenizer.requirements if isinstance(tokenizer, MeetsRequirements) else ()
        require = data.draw(st.sampled_from([None, *known]), "required")
        config = config.model_copy(update={"require": require, "tries": 3})
        schedule = None if tokenizer.adaptive else pyramid.schedule
        config, scorer = self.draw_candidates(data, tokenizer, transformer, config)
        sampling_checks.check_determinism(
            tokenizer, transformer, len(pyramid), seed, conditions, config, schedule, scorer
        )

    def property_guidance_zero(self, data: st.DataObject) -> None:
        tokenizer, pyramid, conditions, seed = self.draw_pyramid(data)
        transformer = self.draw_transformer(data, tokenizer, pyramid, in_scale_steps=False)
        config = data.draw(self.sampling_configs(tokenizer, pyramid, transformer), "sampling")
        schedule = None if tokenizer.adaptive else pyramid.schedule
        sampling_checks.check_guidance_zero(tokenizer, transformer, len(pyramid), seed, conditions, config, schedule)

    def property_edit_known(self, data: st.DataObject) -> None:
        tokenizer, pyramid, conditions, seed = self.draw_pyramid(data)
        transformer = self.draw_transformer(data, tokenizer, pyramid)
        config = data.draw(self.sampling_configs(tokenizer, pyramid, transformer), "sampling")
        keep = data.draw(strategies.keep_masks(pyramid))
        if tokenizer.adaptive:  # a known token has a place only if all tokens before it are known
            keep = torch.ones_like(keep)
        config, scorer = self.draw_candidates(data, tokenizer, transformer, config)
        sampling_checks.check_edit_known(tokenizer, transformer, pyramid, keep, seed, conditions, config, scorer)

    def property_edit_places(self, data: st.DataObject) -> None:
        tokenizer, seed = self.draw_tokenizer(data), data.draw(strategies.seeds(), "seed")
        if not isinstance(tokenizer, EditsPlaces):
            raise SkipTest("edit by place: this tokenizer's tokens have no place in the sample")
        samples = self.samples(tokenizer, data.draw(st.integers(1, self.max_samples), "samples"), seed)
        keep = data.draw(strategies.place_masks(samples), "keep")
        pyramid = tokenizer.encode(samples)
        transformer = self.draw_transformer(data, tokenizer, pyramid)
        config = data.draw(self.sampling_configs(tokenizer, pyramid, transformer), "sampling")
        conditions = self.conditions(len(pyramid), seed)
        sampling_checks.check_edit_places(tokenizer, transformer, samples, keep, seed, conditions, config)

    def property_legality(self, data: st.DataObject) -> None:
        tokenizer, pyramid, conditions, seed = self.draw_pyramid(data)
        if not isinstance(tokenizer.token_space, Codes):
            raise SkipTest("legality: only codes have a mask of legal tokens")
        transformer = self.draw_transformer(data, tokenizer, pyramid)
        config = data.draw(self.sampling_configs(tokenizer, pyramid, transformer, extreme=True), "sampling")
        schedule = None if tokenizer.adaptive else pyramid.schedule
        config, scorer = self.draw_candidates(data, tokenizer, transformer, config)
        sampling_checks.check_legality(
            tokenizer, transformer, len(pyramid), seed, conditions, config, schedule, scorer=scorer
        )
