"""The contract suite on tokenizers unlike grids: ragged sets whose size is drawn, and bits. Both are lossless."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from nextscale.config.sections import TransformerConfig
from nextscale.testing import TokenizerContract
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.space import Bits, Codes
from nextscale.tokens.stem import Stem
from nextscale.tokens.tokenizer import MultiscaleTokenizer


@dataclass(frozen=True)
class Sets:
    """B N numbers below 16. The first few of each row are real, as ``mask`` says."""

    values: Tensor
    mask: Tensor


@dataclass(frozen=True)
class SetState:
    sizes: Tensor | None
    values: Tensor
    schedule: Schedule


class SetTokenizer(MultiscaleTokenizer):
    """Scale 0 says how many numbers there are, scale 1 their upper two bits, scale 2 the lower two."""

    token_space = Codes(16)
    feature_dim = 2

    def schedule(self) -> Schedule:
        return Schedule.of([(1,), (5,), (5,)])

    def encode(self, samples: Sets) -> TokenPyramid:
        sizes, width = samples.mask.sum(1, keepdim=True), samples.values.shape[1]
        mask = torch.cat([torch.ones_like(sizes, dtype=torch.bool), samples.mask, samples.mask], 1)
        parts = [sizes, samples.values // 4, samples.values % 4]
        return TokenPyramid.pack(parts, Schedule.of([(1,), (width,), (width,)]), None if mask.all() else mask)

    def initial_state(
        self, num_samples: int, conditions: Mapping[str, Tensor] | None = None, schedule: Schedule | None = None
    ) -> SetState:
        schedule = schedule or self.schedule()
        return SetState(None, torch.zeros(num_samples, schedule.lengths[1], dtype=torch.long), schedule)

    def scale_input(self, state: SetState, k: int) -> ScaleInput:
        count, width = state.values.shape
        legal = torch.zeros(count, state.schedule.lengths[k], 16, dtype=torch.bool)
        if state.sizes is None:
            legal[..., 1 : width + 1] = True
            return ScaleInput(count, None, torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), legal=legal)
        legal[..., :4] = True
        # Positions count from the first number, because the centres of the schedule's cells depend on the padding.
        places = torch.arange(width)
        features = torch.stack([state.sizes.expand(-1, width), state.values], -1).float() / 16
        return ScaleInput(count, features, places[:, None].float(), torch.full((width,), k), self.mask(state), legal)

    def mask(self, state: SetState) -> Tensor:
        sizes = torch.zeros(1, 1) if state.sizes is None else state.sizes
        return (torch.arange(state.values.shape[1]) < sizes).expand(len(state.values), -1)

    def update(self, state: SetState, k: int, tokens: Tensor) -> SetState:
        if k == 0:
            return replace(state, sizes=tokens)
        return replace(state, values=state.values + tokens * self.mask(state) * (4 if k == 1 else 1))

    def decode(self, state: SetState) -> Sets:
        return Sets(state.values, self.mask(state))


class SetStem(Stem):
    """The modality's own network, from features to embeddings and from hidden states to logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.Linear(8, width))
        self.revealed, self.score = nn.Embedding(17, width), nn.Linear(width, 16)

    def forward(self, inputs: ScaleInput, revealed: tuple[Tensor, Tensor] | None) -> tuple[Tensor, None]:
        features = inputs.features
        if features is None:
            features = torch.zeros(inputs.num_samples, inputs.length, 2)
        x_BLD = self.embed(features)
        if revealed is not None:
            x_BLD = x_BLD + self.revealed(torch.where(revealed[1], revealed[0] + 1, 0))
        return x_BLD, None

    def logits(self, hidden_BLD: Tensor, memory: None) -> Tensor:
        return self.score(hidden_BLD)


class TestSets(TokenizerContract):
    lossless = True

    def build_tokenizer(self) -> SetTokenizer:
        return SetTokenizer()

    def schedules(self, tokenizer: SetTokenizer) -> st.SearchStrategy[Schedule | None]:
        return st.none() | st.integers(1, 6).map(lambda n: Schedule.of([(1,), (n,), (n,)]))

    def transformer_configs(self, num_scales: int, in_scale_steps: bool | None) -> st.SearchStrategy[TransformerConfig]:
        """A batch's schedule is as long as its longest set, so positions must not be tied to one schedule."""
        drawn = super().transformer_configs(num_scales, in_scale_steps)
        return drawn.map(lambda config: config.model_copy(update={"positions": "rotary"}))

    def build_stem(self, tokenizer: SetTokenizer, width: int) -> Stem | None:
        return SetStem(width)

    def samples(self, tokenizer: SetTokenizer, num_samples: int, seed: int) -> Sets:
        generator = torch.Generator().manual_seed(seed)
        values = torch.randint(16, (num_samples, 5), generator=generator)
        sizes = torch.randint(1, 6, (num_samples, 1), generator=generator)
        mask = torch.arange(5) < sizes
        return Sets(values * mask, mask)

    def ragged(self, tokenizer: SetTokenizer, seed: int) -> tuple[list[Any], Any]:
        joined = self.samples(tokenizer, 4, seed)
        singles = [Sets(v[m][None], m[m][None]) for v, m in zip(joined.values, joined.mask, strict=True)]
        return singles, joined

    def check_samples(self, samples: Sets, num_samples: int) -> None:
        assert samples.values.shape == samples.mask.shape == (num_samples, samples.mask.shape[1])
        assert not samples.values[~samples.mask].any() and samples.values.max() < 16


class TestSetsWithoutStem(TestSets):
    """The transformer's own stem and head, so that a refiner meets padding."""

    examples, few_examples = 10, 5

    def build_stem(self, tokenizer: SetTokenizer, width: int) -> Stem | None:
        return None


@dataclass(frozen=True)
class BitState:
    values: Tensor
    schedule: Schedule


class BitTokenizer(MultiscaleTokenizer):
    """Four numbers below 64, described by their bits, the most significant two first."""

    token_space = Bits(2)
    feature_dim = 1

    def schedule(self) -> Schedule:
        return Schedule.of([(4,)] * 3)

    def encode(self, samples: Tensor) -> TokenPyramid:
        pairs = [samples // 4 ** (2 - k) % 4 for k in range(3)]
        return TokenPyramid.pack([torch.stack([pair // 2, pair % 2], -1) for pair in pairs], self.schedule())

    def initial_state(
        self, num_samples: int, conditions: Mapping[str, Tensor] | None = None, schedule: Schedule | None = None
    ) -> BitState:
        return BitState(torch.zeros(num_samples, 4, dtype=torch.long), schedule or self.schedule())

    def scale_input(self, state: BitState, k: int) -> ScaleInput:
        features = None if k == 0 else state.values[..., None] / 64
        return ScaleInput(len(state.values), features, state.schedule.coordinates(k), torch.full((4,), k))

    def update(self, state: BitState, k: int, tokens: Tensor) -> BitState:
        return replace(state, values=state.values + (2 * tokens[..., 0] + tokens[..., 1]) * 4 ** (2 - k))

    def decode(self, state: BitState) -> Tensor:
        return state.values


class TestBits(TokenizerContract):
    lossless = True
    on_grid = True

    def build_tokenizer(self) -> BitTokenizer:
        return BitTokenizer()

    def samples(self, tokenizer: BitTokenizer, num_samples: int, seed: int) -> Tensor:
        return torch.randint(64, (num_samples, 4), generator=torch.Generator().manual_seed(seed))

    def check_samples(self, samples: Tensor, num_samples: int) -> None:
        assert samples.shape == (num_samples, 4) and 0 <= samples.min() <= samples.max() < 64
