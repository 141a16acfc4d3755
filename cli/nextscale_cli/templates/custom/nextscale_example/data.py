"""From ``data.source`` to splits of samples. REPLACE ``read_source`` with a reader of your own files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nextscale.plugin import Batch, DataError, DataSplits, fingerprint, hold_out, read_arrays
from nextscale_example.config import ExampleDataConfig

LENGTH = 12
"""Of the placeholder samples."""


class ExampleSource:
    """One split: a ``nextscale.plugin.SampleSource`` of N L integers."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
        """``seeds`` (one per sample, None outside training) are what random augmentation must be a function of."""
        return Batch(torch.from_numpy(self.values[indices]))

    def fingerprint(self) -> str:
        """Tells this data from other data of the same size, so that cached tokens are never taken for theirs."""
        return fingerprint({"values": self.values})


def open_data(config: ExampleDataConfig) -> DataSplits:
    """Raises DataError in one line that names the file, what is wrong with it, and what would be right."""
    values = read_source(config)
    kept, held = hold_out(None, len(values), config.validation, config.split_seed)
    if not len(kept) or not len(held):
        raise DataError(f"{config.source} holds {len(values)} samples: too few to train and to validate with")
    return DataSplits(
        train=ExampleSource(values[kept]),
        validation=ExampleSource(values[held]),
        test=None,
        conditions=(),
        # What the tokenizer and the writers must know; stored with the model, so that it loads without the data.
        description={"length": values.shape[1]},
    )


def read_source(config: ExampleDataConfig) -> np.ndarray:
    """N L integers from 0 to 63."""
    if config.source == "placeholder":
        draw = np.random.default_rng(0)
        starts, steps = draw.integers(0, 20, (240, 1)), draw.integers(0, 4, (240, 1))
        return starts + steps * np.arange(LENGTH)  # evenly spaced numbers
    path = Path(config.source).expanduser()
    values = read_arrays(path, lambda name: name == "x", config.limits).get("x", np.zeros(0))
    if (
        values.ndim != 2
        or values.dtype.kind not in "iu"
        or not values.size
        or not 0 <= values.min() <= values.max() < 64
    ):
        raise DataError(f"{path} should hold x, N samples of L whole numbers from 0 to 63")
    return values.astype(np.int64)
