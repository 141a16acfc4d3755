"""The points modality."""

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
    Objective,
    film_strip,
    read_samples,
    replacing,
    tile,
    write_png,
)
from nextscale_points.config import PointsDataConfig, PointsEvaluationConfig, PointsTokenizerConfig
from nextscale_points.data import open_points
from nextscale_points.tokenizer import PointsTokenizer


class PointsModality(Modality):
    name = "points"

    def contract(self, folder: Path) -> ContractCase:
        return ContractCase(PointsDataConfig(points=8), PointsTokenizerConfig(levels=3))

    def open_data(self, config: PointsDataConfig) -> DataSplits:
        return open_points(config)

    def build_tokenizer(self, config: PointsTokenizerConfig, description: dict[str, Any]) -> PointsTokenizer:
        return PointsTokenizer(description["points"], description["axes"], config.levels)

    def tokenizer_objectives(self, tokenizer: Any, config: PointsTokenizerConfig) -> list[Objective]:
        return []  # no weights

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
        """A line per point: x,y or x,y,z."""
        files = [folder / f"{first + i:06d}.csv" for i in range(len(samples))]
        for file, points in zip(files, samples.cpu().numpy(), strict=True):
            with replacing(file) as partial:
                np.savetxt(partial, points, "%.6f", ",")
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
        return write_png(tile(_dots(samples), columns, captions), path.with_suffix(".png"))

    def write_film(
        self, steps: list[Tensor], path: Path, description: Mapping[str, Any], captions: Sequence[str] | None = None
    ) -> Path:
        return write_png(film_strip([_dots(step) for step in steps], captions), path.with_suffix(".png"))

    def evaluate_samples(
        self,
        samples: Tensor,
        conditions: dict[str, Tensor],
        data: DataSplits,
        options: PointsEvaluationConfig,
        context: EvaluationContext,
    ) -> dict[str, Any]:
        """``nearest``: the mean Chamfer distance to the nearest training set; ``recognised``: how often that set has
        the label that was asked for; each beside that of held-out sets."""
        train, labels = read_samples(data.train, 1000, options.seed)
        results: dict[str, Any] = {}
        held = read_samples(data.held_out, len(samples), options.seed)
        for suffix, (points, asked) in (("", (samples.cpu(), conditions.get("label"))), ("_floor", held)):
            distance = torch.stack([_chamfer(one, train) for one in points])
            results[f"nearest{suffix}"] = float(distance.min(1).values.mean())
            if labels is not None and asked is not None:
                results[f"recognised{suffix}"] = float((labels[distance.argmin(1)] == asked.cpu()).double().mean())
        return results


def _chamfer(one: Tensor, others: Tensor) -> Tensor:
    """N: mean distances of the points P D of one set to the nearest ones of N P D others, and back."""
    distance = torch.cdist(one.expand(len(others), -1, -1), others)
    return distance.min(1).values.mean(1) + distance.min(2).values.mean(1)


def _dots(samples: Tensor, side: int = 64) -> np.ndarray:
    """B side side 1 of uint8: points in the plane; points in space from the side, the nearer the brighter."""
    points = samples.cpu().float().clamp(-1, 1)
    places = ((points[..., :2] + 1) / 2 * (side - 1)).round().long().numpy()
    depth = (points[..., 2] + 1) / 2 if points.shape[-1] == 3 else torch.ones(points.shape[:2])
    pictures = np.zeros((len(points), side, side), np.uint8)
    rows = np.arange(len(points))[:, None]
    np.maximum.at(
        pictures, (rows, side - 1 - places[..., 1], places[..., 0]), (95 + 160 * depth.numpy()).astype(np.uint8)
    )
    return pictures[..., None]
