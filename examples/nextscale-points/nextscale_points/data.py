"""Point sets from arrays, and built-in shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nextscale.plugin import Batch, ConditionSpec, DataError, DataSplits, as_classes, fingerprint, hold_out, read_arrays
from nextscale_points.config import PointsDataConfig

Sets = tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]
"""Points N P D in [-1, 1], labels N, names of the classes."""


class PointsSource:
    """A ``SampleSource`` of B P D points in [-1, 1]."""

    def __init__(self, points: np.ndarray, labels: np.ndarray | None) -> None:
        self.points, self.labels = points, labels

    def __len__(self) -> int:
        return len(self.points)

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
        labels = {} if self.labels is None else {"label": torch.from_numpy(self.labels[indices])}
        return Batch(torch.from_numpy(self.points[indices]), labels)

    def fingerprint(self) -> str:
        return fingerprint({"points": self.points, "labels": self.labels})


def open_points(config: PointsDataConfig) -> DataSplits:
    """Raises DataError: the file is not as it should be, or holds too few sets."""
    built_in = config.source == "shapes"
    points, labels, classes = shapes(config.points) if built_in else read_npz(Path(config.source), config)
    kept, held = hold_out(labels, len(points), config.validation, config.split_seed)
    if not len(kept) or not len(held):
        raise DataError(f"{config.source} holds {len(points)} sets: too few to train and to validate with")
    train, validation = (PointsSource(points[rows], None if labels is None else labels[rows]) for rows in (kept, held))
    conditions = (ConditionSpec(name="label", size=len(classes), names=classes),) if classes else ()
    description = {"points": points.shape[1], "axes": points.shape[2], "classes": list(classes)}
    return DataSplits(train, validation, None, conditions, description)


def read_npz(path: Path, config: PointsDataConfig) -> Sets:
    arrays = read_arrays(path, lambda name: name in ("x", "y"), config.limits)
    points = arrays.get("x", np.zeros(0))
    if points.ndim != 3 or points.dtype.kind != "f" or points.shape[2] not in (2, 3) or not points.size:
        raise DataError(f"{path} should hold x, N sets of P points with 2 or 3 coordinates each, as floats")
    low, high = points.min((1, 2), keepdims=True), points.max((1, 2), keepdims=True)
    if not np.isfinite(low).all() or not np.isfinite(high).all():
        raise DataError(f"{path}: x holds coordinates that are not finite: leave those sets out")
    points = ((points - low) / np.maximum(high - low, 1e-9) * 2 - 1).astype(np.float32)
    if "y" not in arrays:
        return points, None, ()
    labels, classes = as_classes(arrays["y"], f"{path}: y", limits=config.limits)
    if len(labels) != len(points):
        raise DataError(f"{path}: y has {len(labels)} labels for the {len(points)} sets of x")
    return points, labels, classes


def shapes(number: int) -> Sets:
    """1,500 outlines of many sizes and places: circles, squares, crosses."""
    draw, labels = np.random.default_rng(0), np.arange(1500) % 3
    t = draw.uniform(0, 1, (1500, number))
    angle, side, along = 2 * np.pi * t, np.floor(4 * t), 4 * t % 1 * 2 - 1
    square = np.stack([np.choose(side.astype(int), [along, -along, 1 + 0 * t, -1 + 0 * t]),
                       np.choose(side.astype(int), [1 + 0 * t, -1 + 0 * t, along, -along])], -1)  # fmt: skip
    cross = np.stack([np.where(t < 0.5, along, 0), np.where(t < 0.5, 0, along)], -1)
    kinds = np.stack([np.stack([np.cos(angle), np.sin(angle)], -1), square, cross])
    size = draw.uniform(0.4, 0.9, (1500, 1, 1))
    places = draw.uniform(-1, 1, (1500, 1, 2)) * (1 - size)
    return (kinds[labels, np.arange(1500)] * size + places).astype(np.float32), labels, ("circle", "square", "cross")
