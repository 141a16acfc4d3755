"""The audio modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import wavfile
from torch import Tensor

from nextscale.plugin import (
    ContractCase,
    DataError,
    DataSplits,
    EvaluationContext,
    GridModality,
    GridTokenizer,
    Objective,
    QuantizerConfig,
    build_grid_tokenizer,
    film_strip,
    grid_objectives,
    reconstruction_quality,
    replacing,
    sample_quality,
    tile,
    to_uint8,
    write_png,
)
from nextscale_audio.config import AudioDataConfig, AudioEvaluationConfig, AudioTokenizerConfig
from nextscale_audio.data import open_sounds, read_wave
from nextscale_audio.spectrogram import HOP, to_mel, to_waves


class AudioModality(GridModality):
    name = "audio"

    def contract(self, folder: Path) -> ContractCase:
        small = {"channels": 4, "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": False, "shortcut": True}
        tokenizer = AudioTokenizerConfig(**small, scales=(1, 2, 4, 8), quantizer=QuantizerConfig(codes=16, phi_count=2))
        return ContractCase(
            AudioDataConfig(seconds=0.128, mels=16), tokenizer, evaluation=AudioEvaluationConfig(classifier_epochs=1)
        )

    def open_data(self, config: AudioDataConfig) -> DataSplits:
        return open_sounds(config)

    def build_tokenizer(self, config: AudioTokenizerConfig, description: dict[str, Any]) -> GridTokenizer:
        shape = (description["frames"],)
        return build_grid_tokenizer(config, channels=description["mels"], shape=shape, scales=config.scales)

    def tokenizer_objectives(self, tokenizer: Any, config: AudioTokenizerConfig) -> list[Objective]:
        return grid_objectives(tokenizer, config, tokenizer.channels)

    def write_samples(
        self,
        samples: Tensor,
        folder: Path,
        description: Mapping[str, Any],
        first: int = 0,
        metadata: Sequence[Mapping[str, str]] | None = None,
    ) -> list[Path]:
        waves, files = to_waves(samples.cpu(), description["rate"]), []
        for i, wave in enumerate(waves, first):
            loudest = wave.abs().max().clamp_min(1e-4)
            with replacing(folder / f"{i:06d}.wav") as partial:
                wavfile.write(partial, description["rate"], (wave / loudest * 29000).numpy().astype(np.int16))
            files.append(folder / f"{i:06d}.wav")
        return files

    def write_grid(
        self,
        samples: Tensor,
        path: Path,
        description: Mapping[str, Any],
        columns: int | None = None,
        captions: Sequence[str] | None = None,
    ) -> Path:
        columns = columns or round(len(samples) ** 0.5)
        return write_png(tile(_pictures(samples), columns, captions), path.with_suffix(".png"))

    def write_film(
        self, steps: list[Tensor], path: Path, description: Mapping[str, Any], captions: Sequence[str] | None = None
    ) -> Path:
        return write_png(film_strip([_pictures(step) for step in steps], captions), path.with_suffix(".png"))

    def read_sample(self, path: Path, tokenizer: Any, mask: Path | None = None) -> tuple[Tensor, None]:
        if mask is not None:
            raise DataError("sounds take no mask file: say with --box FROM,TO which frames are drawn anew")
        told = tokenizer.description
        wave = read_wave(path, told["rate"], told["frames"] * HOP)
        return to_mel(torch.from_numpy(wave)[None], told["rate"], told["mels"]), None

    def evaluate_tokenizer(
        self, tokenizer: Any, data: DataSplits, options: Any, context: EvaluationContext
    ) -> dict[str, Any]:
        return reconstruction_quality(tokenizer, data, context)

    def evaluate_samples(
        self, samples: Tensor, conditions: Any, data: DataSplits, options: Any, context: EvaluationContext
    ) -> dict[str, Any]:
        return sample_quality(samples, conditions, data, context, options.seed, options.classifier_epochs)


def _pictures(samples: Tensor) -> np.ndarray:
    """B H W 1: spectrograms with low frequencies at the bottom."""
    return to_uint8(samples.flip(1)[:, None])
