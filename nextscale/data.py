"""What a modality's data looks like to the core: batches, sources that read them, and the splits of a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nextscale.conditioning import ConditionSpec


@dataclass
class Batch:
    """Samples of one batch, collated as the modality's tokenizer takes them, and their conditions.

    ``samples`` is opaque to the core (a ``B C *grid`` tensor, a batch of graphs, ...); it only has to offer
    ``.to(device)``. ``conditions`` maps a condition's name to a tensor whose first axis is B. ``scratch`` is what
    one objective leaves for the next on the same batch.
    """

    samples: Any
    conditions: dict[str, Tensor] = field(default_factory=dict)
    scratch: dict[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        moved = {name: value.to(device) for name, value in self.conditions.items()}
        return Batch(self.samples.to(device), moved)


class SampleSource(Protocol):
    """One split of a data set, read by index.

    Where samples are of different lengths, it may have ``lengths`` (N numbers, in any unit): training then takes
    samples of about one length together, which leaves little to pad.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
        """Read the samples ``indices`` (B integers).

        ``seeds`` (B of uint64) makes sample i's random augmentation a function of ``seeds[i]`` alone, so it does
        not depend on batch size, on process count, or on where training was resumed; None means no augmentation.
        """
        ...


@dataclass
class DataSplits:
    """A data set as a modality opened it.

    ``description`` is a JSON-able record of what the tokenizer must know of the data (sizes, channels, class
    names); it is stored with the trained models, so that a run loads without its data.
    """

    train: SampleSource
    validation: SampleSource
    test: SampleSource | None
    conditions: tuple[ConditionSpec, ...]
    description: dict[str, Any]

    @property
    def held_out(self) -> SampleSource:
        """What a trained model is measured on: the test split, else the validation split."""
        return self.validation if self.test is None else self.test


@dataclass
class Samples:
    """``samples`` as the modality has them (on a grid: B C *grid); ``steps[k]``, the same decoded after scale
    k (only where asked for); the ``conditions`` they were drawn under."""

    samples: Any
    steps: list[Any]
    conditions: dict[str, Tensor]
