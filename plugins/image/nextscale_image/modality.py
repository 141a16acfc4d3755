"""The image modality: how the core's records map to images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nextscale.conditioning import ConditionSpec
from nextscale.data import DataSplits
from nextscale.grid.objectives import CriticObjective, TokenizerObjective
from nextscale.modality import Modality
from nextscale.tokenizer import MultiscaleTokenizer
from nextscale.training.objective import Objective
from nextscale_image import writers
from nextscale_image.config import ImageDataConfig, ImageTokenizerConfig
from nextscale_image.data import open_images
from nextscale_image.files import read_image
from nextscale_image.tokenizer import ImageTokenizer

if TYPE_CHECKING:
    from nextscale.bench import BenchCase


class ImageModality(Modality):
    name = "image"

    def open_data(self, config: ImageDataConfig) -> DataSplits:
        return open_images(config)

    def build_tokenizer(self, config: ImageTokenizerConfig, description: dict[str, Any]) -> ImageTokenizer:
        return ImageTokenizer(config, description)

    def tokenizer_objectives(self, tokenizer: MultiscaleTokenizer, config: ImageTokenizerConfig) -> list[Objective]:
        assert isinstance(tokenizer, ImageTokenizer)
        if config.adversarial.weight == 0:
            return [TokenizerObjective(tokenizer, config)]
        critic = CriticObjective(config.adversarial, tokenizer.channels, min(tokenizer.sample_shape))
        return [TokenizerObjective(tokenizer, config, critic), critic]

    def write_samples(self, samples: Tensor, folder: Path) -> list[Path]:
        return writers.write_samples(samples, folder)

    def write_grid(self, samples: Tensor, path: Path, columns: int | None = None) -> Path:
        return writers.write_grid(samples, _png(path), columns)

    def write_film(self, steps: list[Tensor], path: Path) -> Path:
        return writers.write_film(steps, _png(path))

    def read_sample(
        self, path: Path, tokenizer: MultiscaleTokenizer, mask: Path | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Upright, resized and cropped to the size of the training data; what a mask has white is drawn anew."""
        assert isinstance(tokenizer, ImageTokenizer)
        return read_image(path, tokenizer.channels, tokenizer.sample_shape, mask)

    def bench_cases(self) -> list[BenchCase]:
        """The fashion preset, and VAR's 256 px layout at depth 8 (680 tokens) on four samples."""
        from nextscale.bench import BenchCase

        label = {size: ConditionSpec(name="label", size=size) for size in (10, 1000)}
        return [
            BenchCase("fashion", None, {"channels": 1, "height": 28, "width": 28}, (label[10],)),
            BenchCase("var-d8-256", 4, {"channels": 3, "height": 256, "width": 256}, (label[1000],)),
        ]

    def sample_bench_cases(self) -> list[BenchCase]:
        """Published VAR's smallest model: 256 px, depth 16."""
        from nextscale.bench import BenchCase

        description = {"channels": 3, "height": 256, "width": 256}
        return [BenchCase("var-d16-256", None, description, (ConditionSpec(name="label", size=1000),))]

    def check_evaluation(self, options: dict[str, Any]) -> None:
        from nextscale_image.evaluate import SampleOptions

        SampleOptions.of(options)

    def evaluate_tokenizer(
        self, tokenizer: MultiscaleTokenizer, data: DataSplits, device: torch.device
    ) -> dict[str, Any]:
        from nextscale_image.evaluate import evaluate_reconstruction

        return evaluate_reconstruction(tokenizer, data, device)

    def evaluate_samples(
        self, samples: Tensor, conditions: dict[str, Tensor], data: DataSplits, options: dict[str, Any]
    ) -> dict[str, Any]:
        from nextscale_image.evaluate import evaluate_samples

        return evaluate_samples(samples, conditions, data, options)


def _png(path: Path) -> Path:
    return path if path.suffix else path.with_suffix(".png")
