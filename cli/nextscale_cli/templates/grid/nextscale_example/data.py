"""From ``data.source`` to splits of samples. REPLACE ``read_source`` with a reader of your own files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nextscale.plugin import Batch, ConditionSpec, DataError, DataSplits, as_classes, fingerprint, hold_out, read_arrays
from nextscale_example.config import ExampleDataConfig

AXES = 2
SIDE = 16
"""Of the placeholder samples."""


class ExampleSource:
    """One split: a ``nextscale.plugin.SampleSource``.

    Args:
        values: N C *grid of float32 in [-1, 1].
        labels: N integers, or None.
    """

    def __init__(self, values: np.ndarray, labels: np.ndarray | None) -> None:
        self.values, self.labels = values, labels

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
        """``seeds`` (one per sample, None outside training) are what random augmentation must be a function of."""
        samples = torch.from_numpy(self.values[indices])
        if self.labels is None:
            return Batch(samples)
        return Batch(samples, {"label": torch.from_numpy(self.labels[indices])})

    def fingerprint(self) -> str:
        """Tells this data from other data of the same size, so that cached tokens are never taken for theirs."""
        return fingerprint({"values": self.values, "labels": self.labels})


def open_data(config: ExampleDataConfig) -> DataSplits:
    """Raises DataError in one line that names the file, what is wrong with it, and what would be right."""
    values, labels, classes = read_source(config)
    kept, held = hold_out(labels, len(values), config.validation, config.split_seed)
    if not len(kept) or not len(held):
        raise DataError(f"{config.source} holds {len(values)} samples: too few to train and to validate with")

    def source(rows: np.ndarray) -> ExampleSource:
        return ExampleSource(values[rows], None if labels is None else labels[rows])

    return DataSplits(
        train=source(kept),
        validation=source(held),
        test=None,
        conditions=(ConditionSpec(name="label", size=len(classes), names=classes),) if classes else (),
        # What the tokenizer and the writers must know; stored with the model, so that it loads without the data.
        description={"channels": values.shape[1], "shape": list(values.shape[2:]), "classes": list(classes)},
    )


def read_source(config: ExampleDataConfig) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Samples N C *grid in [-1, 1], their labels (positions in the classes), and the names of the classes."""
    if config.source == "placeholder":
        return placeholder()
    path = Path(config.source).expanduser()
    arrays = read_arrays(path, lambda name: name in ("x", "y"), config.limits)
    values = arrays.get("x", np.zeros(0))
    if values.ndim not in (AXES + 1, AXES + 2) or values.dtype.kind not in "fiu" or not values.size:
        raise DataError(f"{path} should hold x, numbers of shape N and {AXES} axes, with channels N C and {AXES} axes")
    values = values.astype(np.float32)
    values = values if values.ndim == AXES + 2 else values[:, None]
    low, high = values.min(), values.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise DataError(f"{path}: x holds values that are not finite: leave those samples out")
    values = (values - low) / max(high - low, 1e-9) * 2 - 1  # REPLACE: the range that your values have by their nature
    if "y" not in arrays or not config.labels:
        return values, None, ()
    labels, classes = as_classes(arrays["y"], f"{path}: y", limits=config.limits)
    if len(labels) != len(values):
        raise DataError(f"{path}: y has {len(labels)} labels for the {len(values)} samples of x")
    return values, labels, classes


def placeholder() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """240 samples of three classes: waves that are long, short, or both."""
    draw, labels = np.random.default_rng(0), np.arange(240) % 3
    places = np.stack(np.meshgrid(*[np.arange(SIDE) / SIDE] * AXES, indexing="ij"))
    samples = []
    for label in labels:
        phase, direction = draw.uniform(0, 2 * np.pi), draw.dirichlet(np.ones(AXES))
        along = np.tensordot(direction, places, 1) * 2 * np.pi
        waves = [np.sin(along + phase), np.sin(3 * along + phase)]
        samples.append(waves[label] if label < 2 else (waves[0] + waves[1]) / 2)
    return np.stack(samples)[:, None].astype(np.float32), labels, ("long", "short", "both")
