"""The tests of invariants 13 to 20, which ``TokenizerContract`` inherits: what a sound tokenizer does with samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar
from unittest import SkipTest

from hypothesis import strategies as st
from torch import Tensor

from nextscale.testing import attention_checks, edit_checks, encoding_checks, place_checks, strategies
from nextscale.testing.helpers import random_pyramid
from nextscale.testing.properties import PropertyTests
from nextscale.tokens.capabilities import EditsPlaces, MixesCodes, TakesSizes
from nextscale.tokens.pyramid import TokenPyramid
from nextscale.tokens.space import Codes
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer

BATCH = 5
"""Samples per batch in checks that compare a sample with others."""
LONGEST = 24
"""``cuts`` is asked for samples of 1 to this many places."""


class BehaviourTests(PropertyTests):
    reconstructs: ClassVar[bool | None] = None
    on_grid: ClassVar[bool | None] = None

    if TYPE_CHECKING:  # what TokenizerContract brings

        def build_tokenizers(self) -> list[MultiscaleTokenizer]: ...
        def samples(self, tokenizer: MultiscaleTokenizer, num_samples: int, seed: int) -> Any: ...
        def singles(self, samples: Any, num_samples: int) -> list[Any] | None: ...
        def conditions(self, num_samples: int, seed: int) -> dict[str, Tensor]: ...
        def draw_tokenizer(self, data: st.DataObject) -> MultiscaleTokenizer: ...
        def draw_pyramid(
            self, data: st.DataObject
        ) -> tuple[MultiscaleTokenizer, TokenPyramid, dict[str, Tensor], int]: ...
        def draw_transformer(
            self,
            data: st.DataObject,
            tokenizer: MultiscaleTokenizer,
            pyramid: TokenPyramid,
            in_scale_steps: bool | None = None,
        ) -> ScaleTransformer: ...

    def draw_batch(self, data: st.DataObject) -> tuple[MultiscaleTokenizer, Any, int]:
        tokenizer, seed = self.draw_tokenizer(data), data.draw(strategies.seeds(), "seed")
        return tokenizer, self.samples(tokenizer, BATCH, seed), seed

    def property_encoding(self, data: st.DataObject) -> None:
        tokenizer, samples, _ = self.draw_batch(data)
        encoding_checks.check_encoding(tokenizer, samples)

    def property_memory(self, data: st.DataObject) -> None:
        tokenizer, samples, seed = self.draw_batch(data)
        others = self.samples(tokenizer, BATCH, seed + 1)
        encoding_checks.check_memory(tokenizer, samples, others, self.conditions(BATCH, seed))

    def property_batch_mates(self, data: st.DataObject) -> None:
        tokenizer, samples, seed = self.draw_batch(data)
        singles = self.singles(samples, BATCH)
        if singles is None:
            raise SkipTest("batch = singles: override singles() to take this modality's batches apart")
        encoding_checks.check_batch_mates(tokenizer, samples, singles, self.conditions(BATCH, seed))

    def property_information(self, data: st.DataObject) -> None:
        tokenizer, samples, _ = self.draw_batch(data)
        singles = self.singles(samples, BATCH)
        if singles is not None:
            encoding_checks.check_information(tokenizer, samples, singles)
        tokenizer, pyramid, conditions, seed = self.draw_pyramid(data)
        j = data.draw(st.integers(0, len(pyramid.schedule) - 1), "changed scale")
        if not tokenizer.adaptive:
            changed = random_pyramid(tokenizer, len(pyramid), seed + 1, conditions, like=pyramid, changed=j)
            encoding_checks.check_inputs_matter(tokenizer, pyramid, changed, j, conditions)

    def property_reconstruction(self, data: st.DataObject) -> None:
        tokenizer, samples, seed = self.draw_batch(data)
        weights = any(True for _ in tokenizer.parameters())
        if self.reconstructs is False or (self.reconstructs is None and weights):
            raise SkipTest("reconstruction: this tokenizer's weights are random")
        encoding_checks.check_reconstruction(tokenizer, samples, self.conditions(BATCH, seed))

    def property_places(self, data: st.DataObject) -> None:
        tokenizer, pyramid, _, _ = self.draw_pyramid(data)
        grid = place_checks.on_grid(tokenizer) if self.on_grid is None else self.on_grid
        place_checks.check_coordinates(tokenizer, pyramid, grid)

    def property_locality(self, data: st.DataObject) -> None:
        tokenizer, seed = self.draw_tokenizer(data), data.draw(strategies.seeds(), "seed")
        if not isinstance(tokenizer, EditsPlaces | TakesSizes):
            raise SkipTest("locality: this tokenizer's tokens have no place in the sample")
        place_checks.check_locality(tokenizer, tokenizer.schedule(), seed)

    def property_attention(self, data: st.DataObject) -> None:
        tokenizer, pyramid, conditions, seed = self.draw_pyramid(data)
        transformer = self.draw_transformer(data, tokenizer, pyramid)
        j = data.draw(st.integers(0, len(pyramid.schedule) - 1), "disturbed scale")
        attention_checks.check_attention(tokenizer, transformer, pyramid, j, seed, conditions)

    # What a tokenizer declares.

    def draw_editor(self, data: st.DataObject) -> tuple[MultiscaleTokenizer, Any, int]:
        tokenizer, samples, seed = self.draw_batch(data)
        if not isinstance(tokenizer, EditsPlaces):
            raise SkipTest("edit by place: this tokenizer's tokens have no place in the sample")
        return tokenizer, samples, seed

    def property_keep_tokens(self, data: st.DataObject) -> None:
        tokenizer, samples, _ = self.draw_editor(data)
        smaller, larger = (data.draw(strategies.place_masks(samples), what) for what in ("keep", "more"))
        edit_checks.check_keep_tokens(tokenizer, samples, smaller, larger)

    def property_splice(self, data: st.DataObject) -> None:
        tokenizer, samples, seed = self.draw_editor(data)
        schedule, conditions = tokenizer.encode(samples).schedule, self.conditions(BATCH, seed)
        one, two = (random_pyramid(tokenizer, BATCH, seed + i, conditions, schedule) for i in range(2))
        edit_checks.check_splice(tokenizer, samples, one, two, conditions)

    def property_unquantized(self, data: st.DataObject) -> None:
        tokenizer, samples, seed = self.draw_editor(data)
        edit_checks.check_unquantized(tokenizer, samples, self.conditions(BATCH, seed))

    def test_cuts(self) -> None:
        editors = [each for each in self.build_tokenizers() if isinstance(each, EditsPlaces)]
        if not editors:
            raise SkipTest("cuts: this tokenizer's tokens have no place in the sample")
        for tokenizer in editors:
            edit_checks.check_cuts(tokenizer, range(1, LONGEST + 1))

    def property_soft(self, data: st.DataObject) -> None:
        tokenizer, pyramid, conditions, _ = self.draw_pyramid(data)
        if not isinstance(tokenizer, MixesCodes) or not isinstance(tokenizer.token_space, Codes):
            raise SkipTest("soft = hard: this tokenizer's state takes codes, not mixtures of codes")
        edit_checks.check_soft(tokenizer, pyramid, conditions)
