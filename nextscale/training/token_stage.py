"""What the stages after the first share: they learn from tokens, cached or made as they go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from nextscale.captions import class_captions
from nextscale.conditioning import ConditionSpec
from nextscale.config.sections import SamplingConfig, StageConfig
from nextscale.data import Batch, DataSplits
from nextscale.modality import Modality
from nextscale.objective import ModelT, Objective
from nextscale.randomness import Draws, mixed_seed, sample_seeds
from nextscale.sampling.generate import generate
from nextscale.storage.tokens import TokenStore
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import TokenPyramid
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.training.order import StreamOrder
from nextscale.training.stage import Stage
from nextscale.training.tokenizer_stage import validation_batches
from nextscale.transformer import ScaleTransformer, Scorer


class TokenObjective(Objective[ModelT]):
    """A batch holds a token pyramid, or samples, which are then tokenized here.

    Tokens and inputs are computed in full precision, so that they are the same as in sampling and in a cache.
    """

    def __init__(self, model: ModelT, tokenizer: MultiscaleTokenizer) -> None:
        super().__init__()
        self.model = model
        # In a tuple, the tokenizer is not a submodule: it is neither trained nor saved with the model.
        self._frozen = (tokenizer.eval().requires_grad_(False),)

    @property
    def tokenizer(self) -> MultiscaleTokenizer:
        return self._frozen[0]

    def pyramid(self, batch: Batch) -> TokenPyramid:
        if isinstance(batch.samples, TokenPyramid):
            return batch.samples
        with torch.no_grad(), torch.autocast(self.tokenizer.device.type, enabled=False):
            return self.tokenizer.encode(batch.samples)

    def inputs(self, pyramid: TokenPyramid, batch: Batch) -> ScaleInput:
        with torch.no_grad(), torch.autocast(self.tokenizer.device.type, enabled=False):
            return self.tokenizer.teacher_forcing(pyramid, batch.conditions)


class TokenStage(Stage):
    """Batches of tokens, and pictures of samples.

    Args:
        transformer: the one that draws the samples.
        stores: cached tokens of the training and the validation split; None tokenizes on the fly.
    """

    salt: ClassVar[int]
    """Which of the run's random streams orders the data."""

    def __init__(
        self,
        modality: Modality,
        tokenizer: MultiscaleTokenizer,
        transformer: ScaleTransformer,
        data: DataSplits,
        stores: tuple[TokenStore, TokenStore] | None,
        config: StageConfig,
        sampling: SamplingConfig,
        seed: int,
    ) -> None:
        self.modality, self.data, self.stores, self.config = modality, data, stores, config
        self.sampling = sampling
        self.tokenizer = tokenizer
        self.learning_rates = [config.lr]
        self.tokens_per_sample = transformer.schedule.length
        self.reads_samples = stores is None
        self.seed = mixed_seed(seed, self.salt)
        rows, shard = (len(data.train), None) if stores is None else (stores[0].num_rows, stores[0].shard_rows)
        lengths = getattr(data.train, "lengths", None) if stores is None else None
        self.order = StreamOrder(rows, self.seed, shard, lengths=lengths, batch_size=config.batch_size)

    def batch(self, positions: np.ndarray) -> Batch:
        rows = self.order.rows(positions)
        if self.stores is None:
            return self.data.train.batch(rows, sample_seeds(self.seed, positions))
        return cached_batch(self.stores[0], rows)

    def validation(self) -> list[np.ndarray]:
        available = len(self.data.validation) if self.stores is None else self.stores[1].num_rows
        return validation_batches(available, self.config.validation_samples)

    def validation_batch(self, indices: np.ndarray) -> Batch:
        if self.stores is None:
            return self.data.validation.batch(indices, None)
        return cached_batch(self.stores[1], indices)

    def draw_sheet(
        self, transformer: ScaleTransformer, sampling: SamplingConfig, path: Path, scorer: Scorer | None = None
    ) -> Path | None:
        tokenizer, number = self.tokenizer, 64
        conditions = spread_conditions(transformer.conditioner.specs, number, tokenizer.device)
        generator = torch.Generator(tokenizer.device).manual_seed(0)
        drawn = generate(tokenizer, transformer, number, conditions, sampling, generator, scorer=scorer)
        samples, captions = tokenizer.decode(drawn.state), class_captions(transformer.conditioner.specs, conditions)
        return self.modality.write_grid(samples, path, self.data.description, captions=captions)


def dropped_conditions(specs: Sequence[ConditionSpec], share: float, draws: Draws) -> dict[str, Tensor]:
    """Which conditions of which samples (B booleans) are null. Guidance needs the unconditional distribution, so
    all conditions of a sample are dropped together. If there are several, each is also dropped alone, because a
    user may give only some of them."""
    own = [draws.uniform() < share for _ in specs]
    drop = dict.fromkeys((spec.name for spec in specs), own[0]) if own else {}
    several = [spec.name for spec in specs if spec.embedded]
    if len(several) > 1:
        drop |= {name: drop[name] | (draws.uniform() < share) for name in several}
    return drop


def cached_batch(store: TokenStore, rows: np.ndarray) -> Batch:
    tokens, conditions, mask = store.rows(rows)
    return Batch(TokenPyramid(tokens, store.schedule, mask), conditions)


def spread_conditions(specs: tuple, number: int, device: torch.device | str) -> dict[str, Tensor]:
    """Every class equally often, in order; vector conditions are left null."""
    index = torch.arange(number, device=device)
    return {spec.name: index % spec.size for spec in specs if spec.kind == "class"}
