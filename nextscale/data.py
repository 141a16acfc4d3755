"""How the core sees a modality's data: batches, sources that read them, and the splits of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nextscale.conditioning import ConditionSpec
from nextscale.device import to_device


@dataclass
class Batch:
    """The samples of one batch, collated for the modality's tokenizer, and their conditions.

    ``samples`` is opaque to the core (a ``B C *grid`` tensor, a batch of graphs, ...); it only has to offer
    ``.to(device)``. ``conditions`` maps a condition's name to a tensor whose first axis is B. ``scratch`` passes
    intermediate results from one objective to the next on the same batch.
    """

    samples: Any
    conditions: dict[str, Tensor] = field(default_factory=dict)
    scratch: dict[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        samples = to_device(self.samples, device) if isinstance(self.samples, Tensor) else self.samples.to(device)
        return Batch(samples, {name: to_device(value, device) for name, value in self.conditions.items()})


class SampleSource(Protocol):
    """One split of a data set, read by index.

    If samples differ in length, a source may have ``lengths`` (N numbers, in any unit): training then batches samples
    of similar length together, to keep padding small.

    A source may have ``fingerprint() -> str``, which says which samples it holds, in which order and with which
    conditions (``nextscale.plugin.fingerprint`` makes one). The token cache records it and refuses tokens of other
    samples. It must not depend on where the data lie, because data may move.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
        """Read the samples ``indices`` (B integers).

        ``seeds`` is B uint64. Sample i's random augmentation must depend on ``seeds[i]`` alone, and so not on the batch
        size, the number of processes or the step at which training was resumed. None means no augmentation.
        """
        ...


@dataclass
class DataSplits:
    """A data set that a modality has opened.

    ``description`` is a JSON-able record of everything the tokenizer must know about the data (sizes, channels, class
    names). It is stored with the trained models, so that a run loads without its data.
    """

    train: SampleSource
    validation: SampleSource
    test: SampleSource | None
    conditions: tuple[ConditionSpec, ...]
    description: dict[str, Any]

    @property
    def held_out(self) -> SampleSource:
        """The split that a trained model is measured on: the test split if there is one, else the validation split."""
        return self.validation if self.test is None else self.test


@dataclass
class Samples:
    """Drawn samples.

    Attributes:
        samples: in the modality's own form (on a grid: B C *grid).
        steps: ``steps[k]`` holds the same samples decoded after scale k; empty unless asked for.
        conditions: the conditions under which the samples were drawn.
        metadata: for each sample, where it came from, as texts that files can carry (``provenance``); may be empty.
    """

    samples: Any
    steps: list[Any]
    conditions: dict[str, Tensor]
    metadata: Sequence[Mapping[str, str]] = ()
