"""The video modality: implements the core's modality interface for clips."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale.plugin import (
    ContractCase,
    DataError,
    DataSplits,
    EvaluationContext,
    GridModality,
    GridTokenizer,
    MultiscaleTokenizer,
    NextscaleWarning,
    Objective,
    Proposal,
    Samples,
    TrainedModel,
    grid_objectives,
    store_arrays,
)
from nextscale_video import writers
from nextscale_video.config import VideoDataConfig, VideoEvaluationConfig, VideoTokenizerConfig
from nextscale_video.data import open_videos
from nextscale_video.frames import in_channels, read
from nextscale_video.objectives import VideoObjective
from nextscale_video.proposals import propose_videos, suit_videos
from nextscale_video.readers import read_one
from nextscale_video.readers.container import SAME_RATE
from nextscale_video.tokenizer import build_tokenizer


class VideoModality(GridModality):
    name = "video"

    def open_data(self, config: VideoDataConfig) -> DataSplits:
        return open_videos(config)

    def store_samples(self, samples: Any, labels: Any, path: Path) -> dict[str, Any]:
        file = store_arrays(path, clips=samples, **({} if labels is None else {"labels": labels}))
        return {"source": file}

    def suit_data(self, config: VideoDataConfig) -> dict[str, Any]:
        return suit_videos(config)

    def propose(self, data: DataSplits) -> list[Proposal]:
        return propose_videos(data)

    def build_tokenizer(self, config: VideoTokenizerConfig, description: dict[str, Any]) -> GridTokenizer:
        return build_tokenizer(config, description)

    def tokenizer_objectives(self, tokenizer: MultiscaleTokenizer, config: VideoTokenizerConfig) -> list[Objective]:
        assert isinstance(tokenizer, GridTokenizer)
        return grid_objectives(tokenizer, config, tokenizer.channels, VideoObjective)

    def write_samples(
        self,
        samples: Tensor,
        folder: Path,
        description: Mapping[str, Any],
        first: int = 0,
        metadata: Sequence[Mapping[str, str]] | None = None,
    ) -> list[Path]:
        return writers.write_samples(samples, folder, _rate(description), first, metadata)

    def write_archives(self, batches: Iterable[Samples], folder: Path, description: Mapping[str, Any]) -> list[Path]:
        """All clips without loss."""
        fps, classes = description.get("fps"), description.get("classes", ())
        return [writers.write_npz(batches, folder / "videos.npz", fps, classes)]

    def write_grid(
        self,
        samples: Tensor,
        path: Path,
        description: Mapping[str, Any],
        columns: int | None = None,
        captions: Sequence[str] | None = None,
    ) -> Path:
        return writers.write_grid(samples, path.with_suffix(".png"), columns, _rate(description), captions)

    def write_film(
        self, steps: list[Tensor], path: Path, description: Mapping[str, Any], captions: Sequence[str] | None = None
    ) -> Path:
        return writers.write_film(steps, path.with_suffix(".png"), captions)

    def write_parts(
        self,
        parts: Iterable[Tensor],
        path: Path,
        description: Mapping[str, Any],
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        return writers.write_clip(parts, path.with_suffix(".gif"), _rate(description), metadata)

    def read_sample(
        self, path: Path, tokenizer: MultiscaleTokenizer, mask: Path | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The first frames of a file (or folder of frames), with the length and stride of a training clip; in a shorter
        file, the last frame repeats. The mask is a video of the same size; its white parts are redrawn."""
        assert isinstance(tokenizer, GridTokenizer)
        sample, shape = _read(path, tokenizer, tokenizer.channels)
        if mask is None:
            return sample, None
        marked, mask_shape = _read(mask, tokenizer, 1)
        if mask_shape != shape:
            sizes = f"{_show(mask_shape)}, but the video is {_show(shape)} (frames x height x width)"
            raise DataError(f"mask {mask} is {sizes}: they must agree")
        return sample, marked[:, 0] > 0

    def contract(self, folder: Path) -> ContractCase:
        """A few grey clips of random pixels, 5 x 8 x 8."""
        pixels = np.random.default_rng(0).integers(0, 256, (12, 5, 8, 8, 1), np.uint8)
        np.savez(folder / "videos.npz", video=pixels, label=np.arange(12) % 3)
        data = VideoDataConfig(source=str(folder / "videos.npz"), frames=5, validation=0.25)
        scales = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
        settings = {"scales": scales, "channels": 4, "width": 8, "multipliers": (1, 1, 2), "blocks": 1}
        tokenizer = VideoTokenizerConfig.model_validate({**settings, "quantizer": {"codes": 13, "phi_count": 2}})
        return ContractCase(data, tokenizer)

    def evaluate_tokenizer(
        self,
        tokenizer: MultiscaleTokenizer,
        data: DataSplits,
        options: VideoEvaluationConfig,
        context: EvaluationContext,
    ) -> dict[str, Any]:
        from nextscale_video.evaluate import evaluate_reconstruction

        return evaluate_reconstruction(tokenizer, data, context.device)

    def evaluate_model(
        self, model: TrainedModel, data: DataSplits, options: VideoEvaluationConfig, context: EvaluationContext
    ) -> dict[str, Any]:
        from nextscale_video.evaluate import evaluate_prediction

        return evaluate_prediction(model, data)

    def evaluate_samples(
        self,
        samples: Tensor,
        conditions: dict[str, Tensor],
        data: DataSplits,
        options: VideoEvaluationConfig,
        context: EvaluationContext,
    ) -> dict[str, Any]:
        from nextscale_video.evaluate import evaluate_samples

        return evaluate_samples(samples, conditions, data, options, context)


def _rate(description: Mapping[str, Any]) -> float:
    """Frames per second of written clips. Data without time stamps, and runs of before they were read, have none."""
    return float(description.get("fps", writers.RATE))


def _read(path: Path, tokenizer: GridTokenizer, channels: int) -> tuple[Tensor, tuple[int, ...]]:
    """1 C T H W in [-1, 1], and the number of frames read and their original height and width."""
    video, (wanted, height, width) = read_one(path), tokenizer.sample_shape
    description = tokenizer.description or {}
    stride, fps = description.get("stride", 1), description.get("resample")
    rate = video.rate()
    if rate is None:
        fps = None  # arrays and frames in folders are taken to be at the rate of the data
    elif fps is None and "fps" in description:
        _warn_of_rate(video.name, rate, description["fps"] * stride)
    frames = read(video, (height, width), stride, wanted, fps=fps)
    size = next(iter(video.frames(None))).shape[:2]
    clip = torch.from_numpy(in_channels(frames, channels)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    repeated = clip[:, :, -1:].expand(-1, -1, wanted - len(frames), -1, -1)
    return torch.cat([clip, repeated], 2), (len(frames), *size)


def _warn_of_rate(name: str, rate: float, usual: float) -> None:
    if not usual / (1 + SAME_RATE) <= rate <= usual * (1 + SAME_RATE):
        warnings.warn(
            f"{name} has {rate:g} frames per second, the videos of the training data have {usual:g}: its frames are "
            "taken as they come",
            NextscaleWarning,
            stacklevel=2,
        )


def _show(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
