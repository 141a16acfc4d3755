"""A sound toy modality of small pictures, kept in memory and in .npy files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale.conditioning import ConditionSpec
from nextscale.config.sections import NoOptions
from nextscale.data import Batch, DataSplits
from nextscale.grid import GridModality, GridTokenizer
from nextscale.modality import ContractCase, EvaluationContext
from nextscale.objective import Objective
from nextscale.tokens.tokenizer import MultiscaleTokenizer


class Pictures:
    """16 pictures 2 x 6 x 6 of three classes; augmentation adds noise."""

    def __init__(self) -> None:
        self.pixels = torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
        samples = self.pixels[torch.from_numpy(np.asarray(indices))]
        if seeds is not None:
            samples = samples + self.noise(seeds)
        return Batch(samples, {"label": torch.from_numpy(np.asarray(indices)) % 3})

    def noise(self, seeds: np.ndarray) -> Tensor:
        drawn = [np.random.default_rng(int(seed)).standard_normal((2, 6, 6)) for seed in seeds]
        return torch.from_numpy(np.stack(drawn)).float() / 8


class Error(Objective):
    def __init__(self, tokenizer: MultiscaleTokenizer) -> None:
        super().__init__()
        self.name, self.model = "tokenizer", tokenizer

    def forward(self, batch: Batch, step: int, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
        reconstruction, _ = self.model.reconstruct(batch.samples)  # type: ignore[operator]
        loss = (reconstruction - batch.samples).square().mean()
        return loss, {"error": loss.detach()}


class Toy(GridModality):
    name = "toy"
    source: Any = Pictures

    def open_data(self, config: Any) -> DataSplits:
        splits = [self.source() for _ in range(2)]
        return DataSplits(*splits, None, (ConditionSpec(name="label", size=3),), self.describe())

    def describe(self) -> dict[str, Any]:
        return {"shape": [6, 6]}

    def build_tokenizer(self, config: Any, description: dict[str, Any]) -> MultiscaleTokenizer:
        return plain_tokenizer(description["shape"])

    def tokenizer_objectives(self, tokenizer: MultiscaleTokenizer, config: Any) -> list[Objective]:
        return [Error(tokenizer)]

    def contract(self, folder: Path) -> ContractCase:
        return ContractCase(NoOptions(), NoOptions())

    def write_samples(
        self,
        samples: Tensor,
        folder: Path,
        description: Mapping[str, Any],
        first: int = 0,
        metadata: Sequence[Mapping[str, str]] | None = None,
    ) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{first + i}.npy" for i in range(len(samples))]
        for file, sample in zip(files, samples, strict=True):
            np.save(file, sample.cpu().numpy())
        return files

    def write_grid(
        self,
        samples: Tensor,
        path: Path,
        description: Mapping[str, Any],
        columns: int | None = None,
        captions: Sequence[str] | None = None,
    ) -> Path:
        return self.write_samples(samples.flatten(2)[None], path, description)[0]

    def write_film(
        self, steps: list[Tensor], path: Path, description: Mapping[str, Any], captions: Sequence[str] | None = None
    ) -> Path:
        return self.write_grid(torch.cat(steps), path, description)

    def read_sample(
        self, path: Path, tokenizer: MultiscaleTokenizer, mask: Path | None = None
    ) -> tuple[Tensor, Tensor | None]:
        found, marked = (None if file is None else torch.from_numpy(np.load(file))[None] for file in (path, mask))
        assert found is not None
        return found, None if marked is None else marked[:, 0] > 0

    def evaluate_samples(
        self, samples: Any, conditions: Any, data: DataSplits, options: Any, context: EvaluationContext
    ) -> dict[str, Any]:
        return {"mean": float(samples.mean())}


def plain_tokenizer(shape: Any) -> GridTokenizer:
    """``tiny.grid_tokenizer`` with the weights that torch gives it: randomising needs values, and so memory."""
    from nextscale.grid import Phi, ResidualPyramid, VectorQuantizer

    pyramid = ResidualPyramid(VectorQuantizer(11, 4, num_scales=3), Phi(2, 4, "partial", count=2, num_scales=3))
    encoder, decoder = torch.nn.Conv2d(2, 4, 2, stride=2), torch.nn.ConvTranspose2d(4, 2, 2, stride=2)
    return GridTokenizer(encoder, decoder, pyramid, (1, 2, 3), shape, (2, 2))
