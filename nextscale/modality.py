"""What a plugin provides: a cheap record that finds it, and the implementation behind it.

The record is read at every start of the command line, so an entry module must not import torch; the implementation
is imported when a command needs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from nextscale.errors import NextscaleError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nextscale.api import Model
    from nextscale.bench import BenchCase
    from nextscale.data import DataSplits
    from nextscale.tokenizer import MultiscaleTokenizer
    from nextscale.training.objective import Objective

API_VERSION = 1


@dataclass(frozen=True)
class ModalitySpec:
    """How the core finds a modality.

    Attributes:
        name: what the user writes after ``--modality``.
        summary: one line for ``nextscale plugins ls``.
        config: dotted path ``package.module:Class`` of a ``ModalityConfig`` (must not import torch).
        implementation: dotted path of a ``Modality`` subclass.
        presets: folder of YAML presets, one file each.
        default_preset: the preset used where the user names none.
        api_version: the version of this interface the plugin was written for.
    """

    name: str
    summary: str
    config: str
    implementation: str
    presets: Path
    default_preset: str
    api_version: int = API_VERSION


@dataclass(frozen=True)
class ModalityConfig:
    """The modality's own sections of a run's configuration: pydantic models with ``extra="forbid"``."""

    data: type[BaseModel]
    tokenizer: type[BaseModel]


class Modality(ABC):
    """The implementation behind a ``ModalitySpec``. Stateless: every method gets what it needs."""

    name: ClassVar[str]

    @abstractmethod
    def open_data(self, config: Any) -> DataSplits:
        """Open the data that ``config`` (the plugin's data section) names.

        Raises:
            DataError: one line that names the file or folder, what is wrong, and what would be right.
        """

    @abstractmethod
    def build_tokenizer(self, config: Any, description: dict[str, Any]) -> MultiscaleTokenizer:
        """A fresh tokenizer for data of this ``description`` (``DataSplits.description``)."""

    @abstractmethod
    def tokenizer_objectives(self, tokenizer: MultiscaleTokenizer, config: Any) -> list[Objective]:
        """What stage 1 trains, in the order it is optimised within a step: the tokenizer's own objective first,
        then any opponent's (a discriminator). Empty for a tokenizer without weights."""

    @abstractmethod
    def write_samples(self, samples: Any, folder: Path) -> list[Path]:
        """Write each sample to a file of its own."""

    @abstractmethod
    def write_grid(self, samples: Any, path: Path, columns: int | None = None) -> Path:
        """Write all samples into one picture (or other overview file) that a person can look at."""

    @abstractmethod
    def write_film(self, steps: list[Any], path: Path) -> Path:
        """Write the coarse-to-fine film strip: ``steps[k]`` are the same samples decoded after scale k."""

    def write_parts(self, parts: Iterable[Any], path: Path) -> Path:
        """Write one sample to ``path``, which has no suffix yet, from its parts along the first axis as they come (each
        a batch of one). The default joins them first."""
        import torch

        return self.write_samples(torch.cat(list(parts), 2), path)[0]

    def read_sample(
        self, path: Path, tokenizer: MultiscaleTokenizer, mask: Path | None = None
    ) -> tuple[Any, Tensor | None]:
        """A batch of one sample from a file, as ``tokenizer`` takes it, and what a mask file marks to be drawn anew:
        1 *grid booleans, fitted to the sample as it was (None without a mask).

        Raises:
            DataError: one line that names the file and what is wrong (unreadable, or the mask is of another size).
        """
        raise NextscaleError(f"modality {self.name} cannot read samples from files")

    def concatenate(self, batches: list[Any]) -> Any:
        """One batch of samples from several; the default is for tensors."""
        import torch

        return batches[0] if len(batches) == 1 else torch.cat(batches)

    def bench_cases(self) -> list[BenchCase]:
        """What ``nextscale bench train`` times where the user names no preset."""
        return []

    def sample_bench_cases(self) -> list[BenchCase]:
        """What ``nextscale bench sample`` times where the user names no preset; each with a description of data."""
        return []

    def check_evaluation(self, options: dict[str, Any]) -> None:  # noqa: B027 (nothing to refuse by default)
        """Refuse options that ``evaluate_samples`` does not know, before anything is measured.

        Raises:
            ConfigError: one line that names the option and what would be right.
        """

    def evaluate_tokenizer(
        self, tokenizer: MultiscaleTokenizer, data: DataSplits, device: torch.device
    ) -> dict[str, Any]:
        """Reconstruction metrics on held-out data."""
        return {}

    def evaluate_model(self, model: Model, data: DataSplits, options: dict[str, Any]) -> dict[str, Any]:
        """Metrics that need the model itself: predictions of held-out samples, say."""
        return {}

    def evaluate_samples(
        self, samples: Any, conditions: dict[str, Tensor], data: DataSplits, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Sample-quality metrics; every distance beside its real-against-real floor at the same count."""
        return {}
