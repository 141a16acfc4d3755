"""A stage: what the training loop needs to know about the model it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import nn

from nextscale.config.sections import StageConfig
from nextscale.data import Batch
from nextscale.objective import Objective


class Stage(ABC):
    """Batches by position in the data stream, the objectives that learn from them, and pictures of the result."""

    name: str
    config: StageConfig
    objectives: list[Objective]
    learning_rates: list[float]
    """Peak learning rate of each objective."""
    tokens_per_sample: int
    resumed_by: str = "--resume auto"
    """What continues this stage on the command line."""
    rests_on: Mapping[str, str] = {}
    """Digests of the weights that this stage learns from and leaves as they are, by the name of their stage. A
    checkpoint records them, and continues with no others."""
    reads_samples: bool = True
    """Whether batches are made of samples, which worker processes may read, decode and augment."""

    @property
    def model(self) -> nn.Module:
        """The stage's result."""
        return self.objectives[0].model

    @abstractmethod
    def batch(self, positions: np.ndarray) -> Batch:
        """The training samples at these positions of the stream (a pure function of seed and position)."""

    @abstractmethod
    def validation(self) -> list[np.ndarray]:
        """The validation samples, as batches of indices."""

    @abstractmethod
    def validation_batch(self, indices: np.ndarray) -> Batch: ...

    @abstractmethod
    def draw_samples(self, model: nn.Module, path: Path) -> Path | None:
        """Write a picture of ``model``'s samples to ``path`` (the modality adds the suffix); None if it cannot."""
