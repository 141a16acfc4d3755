"""Stage 1: train a multiscale tokenizer on samples, with the modality's objectives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nextscale.captions import ORIGINAL, scale_captions, shown_scales
from nextscale.config.sections import TokenizerStageConfig
from nextscale.data import Batch, DataSplits
from nextscale.errors import ConfigError
from nextscale.modality import Modality
from nextscale.randomness import mixed_seed, sample_seeds
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.training.order import StreamOrder
from nextscale.training.stage import Stage


class TokenizerStage(Stage):
    name = "tokenizer"

    def __init__(
        self,
        modality: Modality,
        tokenizer: MultiscaleTokenizer,
        tokenizer_config: Any,
        data: DataSplits,
        config: TokenizerStageConfig,
        seed: int,
    ) -> None:
        self.modality, self.data, self.config = modality, data, config
        self.objectives = modality.tokenizer_objectives(tokenizer, tokenizer_config)
        complete = max(objective.complete_from for objective in self.objectives)
        if complete > config.steps:
            raise ConfigError(
                f"training.tokenizer.steps={config.steps} is too few: the whole loss is at work only from step "
                f"{complete} on (tokenizer.quantizer.rate from rate_start on): train longer, or let it begin earlier"
            )
        self.learning_rates = [objective.lr or config.lr for objective in self.objectives]
        self.tokens_per_sample = tokenizer.schedule().length
        self.seed = mixed_seed(seed, 1)
        self.order = StreamOrder(len(data.train), self.seed)

    def batch(self, positions: np.ndarray) -> Batch:
        return self.data.train.batch(self.order.rows(positions), sample_seeds(self.seed, positions))

    def validation(self) -> list[np.ndarray]:
        return validation_batches(len(self.data.validation), self.config.validation_samples)

    def validation_batch(self, indices: np.ndarray) -> Batch:
        return self.data.validation.batch(indices, None)

    def draw_samples(self, model: nn.Module, path: Path) -> Path | None:
        """The film strip of held-out samples (``draw_reconstructions``)."""
        assert isinstance(model, MultiscaleTokenizer)
        return draw_reconstructions(self.modality, model, self.data, path)


def validation_batches(available: int, limit: int, size: int = 128) -> list[np.ndarray]:
    """Index batches of up to ``limit`` samples spread evenly over the split."""
    count = min(available, limit)
    indices = np.linspace(0, available, count, endpoint=False).astype(np.int64)
    return np.array_split(indices, -(-count // size))


@torch.no_grad()
def draw_reconstructions(
    modality: Modality, tokenizer: MultiscaleTokenizer, data: DataSplits, path: Path, count: int = 8
) -> Path | None:
    """Write the film strip of held-out samples: decoded after each scale that it shows, with the original in the
    last column."""
    indices = validation_batches(len(data.validation), count)[0]
    samples = data.validation.batch(indices, None).to(tokenizer.device).samples
    states = tokenizer.states(tokenizer.encode(samples))
    steps = [*(tokenizer.decode(states[k + 1]) for k in shown_scales(tokenizer, len(states) - 1)), samples]
    captions = [*scale_captions(tokenizer, len(steps) - 1), ORIGINAL]
    return modality.write_film(steps, path, data.description, captions)
