"""The image modality: implements the core's modality interface for images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nextscale.plugin import (
    BenchCase,
    ConditionSpec,
    ContractCase,
    DataSplits,
    EvaluationContext,
    GridModality,
    GridTokenizer,
    MultiscaleTokenizer,
    Objective,
    Proposal,
    grid_objectives,
    store_arrays,
)
from nextscale_image import writers
from nextscale_image.config import ImageDataConfig, ImageEvaluationConfig, ImageTokenizerConfig
from nextscale_image.data import open_images
from nextscale_image.files import read_image
from nextscale_image.proposals import propose_images, suit_images
from nextscale_image.tokenizer import build_tokenizer


class ImageModality(GridModality):
    name = "image"

    def open_data(self, config: ImageDataConfig) -> DataSplits:
        return open_images(config)

    def store_samples(self, samples: Any, labels: Any, path: Path) -> dict[str, Any]:
        file = store_arrays(path, images=samples, **({} if labels is None else {"labels": labels}))
        return {"source": file}

    def suit_data(self, config: ImageDataConfig) -> dict[str, Any]:
        return suit_images(config)

    def propose(self, data: DataSplits) -> list[Proposal]:
        return propose_images(data)

    def build_tokenizer(self, config: ImageTokenizerConfig, description: dict[str, Any]) -> GridTokenizer:
        return build_tokenizer(config, description)

    def tokenizer_objectives(self, tokenizer: MultiscaleTokenizer, config: ImageTokenizerConfig) -> list[Objective]:
        assert isinstance(tokenizer, GridTokenizer)
        return grid_objectives(tokenizer, config, tokenizer.channels)

    def write_samples(
        self,
        samples: Tensor,
        folder: Path,
        description: Mapping[str, Any],
        first: int = 0,
        metadata: Sequence[Mapping[str, str]] | None = None,
    ) -> list[Path]:
        return writers.write_samples(samples, folder, first, metadata)

    def write_grid(
        self,
        samples: Tensor,
        path: Path,
        description: Mapping[str, Any],
        columns: int | None = None,
        captions: Sequence[str] | None = None,
    ) -> Path:
        return writers.write_grid(samples, path.with_suffix(".png"), columns, captions)

    def write_film(
        self, steps: list[Tensor], path: Path, description: Mapping[str, Any], captions: Sequence[str] | None = None
    ) -> Path:
        return writers.write_film(steps, path.with_suffix(".png"), captions)

    def read_sample(
        self, path: Path, tokenizer: MultiscaleTokenizer, mask: Path | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The image, turned upright, resized and cropped to the training size. White parts of the mask are redrawn."""
        assert isinstance(tokenizer, GridTokenizer)
        return read_image(path, tokenizer.channels, tokenizer.sample_shape, mask)

    def contract(self, folder: Path) -> ContractCase:
        """A few grey pictures of random pixels, 8 x 8."""
        pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)
        np.savez(folder / "images.npz", x=pixels, y=np.arange(24) % 3)
        settings = {"scales": (1, 2, 4), "channels": 4, "width": 4, "multipliers": (1, 2), "blocks": 1}
        tokenizer = ImageTokenizerConfig.model_validate({**settings, "quantizer": {"codes": 13, "phi_count": 2}})
        return ContractCase(ImageDataConfig(source=str(folder / "images.npz")), tokenizer)

    def bench_cases(self) -> list[BenchCase]:
        """The fashion preset, and VAR's 256 px layout at depth 8 (680 tokens) on four samples."""
        label = {size: ConditionSpec(name="label", size=size) for size in (10, 1000)}
        return [
            BenchCase("fashion", None, {"channels": 1, "height": 28, "width": 28}, (label[10],)),
            BenchCase("var-d8-256", 4, {"channels": 3, "height": 256, "width": 256}, (label[1000],)),
        ]

    def sample_bench_cases(self) -> list[BenchCase]:
        """Published VAR's smallest model: 256 px, depth 16."""
        description = {"channels": 3, "height": 256, "width": 256}
        return [BenchCase("var-d16-256", None, description, (ConditionSpec(name="label", size=1000),))]

    def evaluate_tokenizer(
        self,
        tokenizer: MultiscaleTokenizer,
        data: DataSplits,
        options: ImageEvaluationConfig,
        context: EvaluationContext,
    ) -> dict[str, Any]:
        from nextscale_image.evaluate import evaluate_reconstruction

        return evaluate_reconstruction(tokenizer, data, context.device)

    def evaluate_samples(
        self,
        samples: Tensor,
        conditions: dict[str, Tensor],
        data: DataSplits,
        options: ImageEvaluationConfig,
        context: EvaluationContext,
    ) -> dict[str, Any]:
        from nextscale_image.evaluate import evaluate_samples

        return evaluate_samples(samples, conditions, data, options, context)
