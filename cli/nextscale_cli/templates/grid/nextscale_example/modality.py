"""The example modality: how the core's records map to its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nextscale.plugin import (
    ContractCase,
    DataSplits,
    EvaluationContext,
    GridModality,
    GridTokenizer,
    Objective,
    QuantizerConfig,
    build_grid_tokenizer,
    film_strip,
    grid_objectives,
    picture_of,
    reconstruction_quality,
    replacing,
    sample_quality,
    tile,
    write_png,
)
from nextscale_example.config import ExampleDataConfig, ExampleEvaluationConfig, ExampleTokenizerConfig
from nextscale_example.data import open_data


class ExampleModality(GridModality):
    """Samples are tensors B C *grid in [-1, 1]. Sampling, editing and prediction need nothing more."""

    name = "example"

    def contract(self, folder: Path) -> ContractCase:
        """The tiny configuration that `nextscale plugins check` tests."""
        small = {"channels": 4, "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": False, "shortcut": True}
        tokenizer = ExampleTokenizerConfig(**small, scales=(1, 2, 4), quantizer=QuantizerConfig(codes=16, phi_count=2))
        return ContractCase(ExampleDataConfig(), tokenizer, evaluation=ExampleEvaluationConfig(classifier_epochs=1))

    def open_data(self, config: ExampleDataConfig) -> DataSplits:
        return open_data(config)

    def build_tokenizer(self, config: ExampleTokenizerConfig, description: dict[str, Any]) -> GridTokenizer:
        # This also runs on torch's meta device, where tensors have no values: so no .item() here.
        shape = description["shape"]
        return build_grid_tokenizer(config, channels=description["channels"], shape=shape, scales=config.scales)

    def tokenizer_objectives(self, tokenizer: Any, config: ExampleTokenizerConfig) -> list[Objective]:
        return grid_objectives(tokenizer, config, tokenizer.channels)

    def write_samples(
        self,
        samples: Tensor,
        folder: Path,
        description: Mapping[str, Any],
        first: int = 0,
        metadata: Sequence[Mapping[str, str]] | None = None,
    ) -> list[Path]:
        """REPLACE: a file per sample, in a format that people can use. `metadata` says where each sample came from."""
        files = [folder / f"{first + i:06d}.npy" for i in range(len(samples))]
        for file, sample in zip(files, samples.cpu().numpy(), strict=True):
            with replacing(file) as partial, partial.open("wb") as stream:
                np.save(stream, sample)
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
        return write_png(tile(picture_of(samples), columns, captions), path.with_suffix(".png"))

    def write_film(
        self, steps: list[Tensor], path: Path, description: Mapping[str, Any], captions: Sequence[str] | None = None
    ) -> Path:
        """A row per sample, a column per scale."""
        return write_png(film_strip([picture_of(step) for step in steps], captions), path.with_suffix(".png"))

    def evaluate_tokenizer(
        self, tokenizer: Any, data: DataSplits, options: ExampleEvaluationConfig, context: EvaluationContext
    ) -> dict[str, Any]:
        return reconstruction_quality(tokenizer, data, context)

    def evaluate_samples(
        self,
        samples: Tensor,
        conditions: dict[str, Tensor],
        data: DataSplits,
        options: ExampleEvaluationConfig,
        context: EvaluationContext,
    ) -> dict[str, Any]:
        """REPLACE or add: what tells a good sample of your data from a bad one."""
        return sample_quality(samples, conditions, data, context, options.seed, options.classifier_epochs)
