"""The example modality: how the core's records map to its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale.plugin import (
    ContractCase,
    DataSplits,
    EvaluationContext,
    Modality,
    NoOptions,
    Objective,
    film_strip,
    replacing,
    some_rows,
    tile,
    write_png,
)
from nextscale_example.config import ExampleDataConfig, ExampleTokenizerConfig
from nextscale_example.data import open_data
from nextscale_example.tokenizer import ExampleTokenizer


class ExampleModality(Modality):
    name = "example"

    def contract(self, folder: Path) -> ContractCase:
        """The tiny configuration that `nextscale plugins check` tests."""
        return ContractCase(ExampleDataConfig(), ExampleTokenizerConfig(), lossless=True)

    def open_data(self, config: ExampleDataConfig) -> DataSplits:
        return open_data(config)

    def build_tokenizer(self, config: ExampleTokenizerConfig, description: dict[str, Any]) -> ExampleTokenizer:
        # This also runs on torch's meta device, where tensors have no values: so no .item() here.
        return ExampleTokenizer(description["length"], config.scales)

    def tokenizer_objectives(self, tokenizer: Any, config: ExampleTokenizerConfig) -> list[Objective]:
        return []  # no weights, nothing to train in stage 1

    def concatenate(self, batches: list[Tensor]) -> Tensor:
        return torch.cat(batches)

    def write_samples(
        self,
        samples: Tensor,
        folder: Path,
        description: Mapping[str, Any],
        first: int = 0,
        metadata: Sequence[Mapping[str, str]] | None = None,
    ) -> list[Path]:
        """REPLACE: a file per sample, in a format that people can use. `metadata` says where each sample came from."""
        files = [folder / f"{first + i:06d}.txt" for i in range(len(samples))]
        for file, sample in zip(files, samples.tolist(), strict=True):
            with replacing(file) as partial:
                partial.write_text(" ".join(map(str, sample)) + "\n")
        return files

    def write_grid(
        self,
        samples: Tensor,
        path: Path,
        description: Mapping[str, Any],
        columns: int | None = None,
        captions: Sequence[str] | None = None,
    ) -> Path:
        columns = columns or max(1, round(len(samples) ** 0.5))
        return write_png(tile(_bars(samples), columns, captions), path.with_suffix(".png"))

    def write_film(
        self, steps: list[Tensor], path: Path, description: Mapping[str, Any], captions: Sequence[str] | None = None
    ) -> Path:
        """A row per sample, a column per scale."""
        return write_png(film_strip([_bars(step) for step in steps], captions), path.with_suffix(".png"))

    def evaluate_samples(
        self,
        samples: Tensor,
        conditions: dict[str, Tensor],
        data: DataSplits,
        options: NoOptions,
        context: EvaluationContext,
    ) -> dict[str, Any]:
        """REPLACE: what tells a good sample of your data from a bad one, beside what real samples score."""
        held = data.held_out.batch(some_rows(len(data.held_out), len(samples), 0), None).samples
        return {"roughness": _roughness(samples.cpu()), "roughness_floor": _roughness(held)}


def _roughness(samples: Tensor) -> float:
    """Mean absolute second difference: 0 for evenly spaced numbers."""
    return float(samples.diff(n=2, dim=1).abs().float().mean())


def _bars(samples: Tensor, height: int = 64) -> np.ndarray:
    """B height L 1 of uint8: each number as a bar."""
    levels = np.arange(height)[::-1, None]
    return ((levels < samples.cpu().numpy()[:, None]) * np.uint8(255)).astype(np.uint8)[..., None]
