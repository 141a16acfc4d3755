"""What a plugin provides: a cheap record that finds it, and the implementation behind it.

The record is read at every start of the command line, so an entry module must not import torch; the implementation
is imported when a command needs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from nextscale.errors import NextscaleError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nextscale.conditioning import ConditionSpec
    from nextscale.data import DataSplits, Samples
    from nextscale.objective import Objective
    from nextscale.tokens.tokenizer import MultiscaleTokenizer

API_VERSION = 2


@dataclass(frozen=True)
class ModalitySpec:
    """How the core finds a modality.

    Attributes:
        name: what the user writes after ``--modality``.
        summary: one line for ``nextscale plugins ls``.
        config: dotted path ``package.module:NAME`` of a ``ModalityConfig`` instance (must not import torch).
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


class NoOptions(BaseModel):
    """A section without settings."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class ModalityConfig:
    """The modality's own sections of settings: pydantic models that refuse unknown keys (``config.sections.Section``).

    ``data`` and ``tokenizer`` are part of a run's configuration. ``evaluation`` are options of ``nextscale eval``,
    written ``eval.KEY=VALUE``.
    """

    data: type[BaseModel]
    tokenizer: type[BaseModel]
    evaluation: type[BaseModel] = NoOptions


@dataclass(frozen=True)
class BenchCase:
    """A preset that ``nextscale bench`` times.

    Attributes:
        preset: its name.
        batch_size: None takes the preset's.
        description, conditions: stand in for the preset's data (``DataSplits``), which then need not be there.
            Samples are decoded from random tokens: time does not depend on content. None opens the data.
    """

    preset: str
    batch_size: int | None = None
    description: dict[str, Any] | None = None
    conditions: tuple[ConditionSpec, ...] = ()


@dataclass(frozen=True)
class EvaluationContext:
    """What the core offers to whoever measures: the device to compute on, and a folder that keeps what takes long to
    compute, such as a trained classifier (None keeps nothing)."""

    device: torch.device
    cache: Path | None = None


class TrainedModel(Protocol):
    """What ``nextscale.load`` returns, as far as a modality or a prediction needs it (``nextscale.api.Model``)."""

    tokenizer: MultiscaleTokenizer

    @property
    def conditions(self) -> tuple[ConditionSpec, ...]: ...

    def generate(self, num_samples: int, *, seed: int = 0, **settings: Any) -> Samples: ...

    def edit(self, samples: Any, keep: Any, *, seed: int = 0, guess: bool = False, **settings: Any) -> Samples: ...


class Modality(ABC):
    """The implementation behind a ``ModalitySpec``. Stateless: every method gets what it needs.

    Samples are opaque to the core: it moves a batch with ``.to(device)`` and joins batches with ``concatenate``.
    Writers get a path without a suffix, add their own, and return what they wrote; ``description`` is that of the
    data (``DataSplits.description``). ``grid.GridModality`` is the base for samples that are tensors B C *grid.
    """

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
    def concatenate(self, batches: list[Any]) -> Any:
        """One batch of samples from several."""

    @abstractmethod
    def write_samples(self, samples: Any, folder: Path, description: Mapping[str, Any]) -> list[Path]:
        """Write each sample to a file of its own in ``folder``; the files, one per sample, in order."""

    @abstractmethod
    def write_grid(self, samples: Any, path: Path, description: Mapping[str, Any], columns: int | None = None) -> Path:
        """Write all samples into one picture (or other overview file) that a person can look at."""

    @abstractmethod
    def write_film(self, steps: list[Any], path: Path, description: Mapping[str, Any]) -> Path:
        """Write the coarse-to-fine film strip: ``steps[k]`` are the same samples decoded after scale k."""

    def write_parts(self, parts: Iterable[Any], path: Path, description: Mapping[str, Any]) -> Path:
        """Write one sample from its parts along the first axis as they come, each a batch of one."""
        raise NextscaleError(f"modality {self.name} cannot write samples piece by piece")

    def read_sample(
        self, path: Path, tokenizer: MultiscaleTokenizer, mask: Path | None = None
    ) -> tuple[Any, Tensor | None]:
        """A batch of one sample from a file, as ``tokenizer`` takes it, and what a mask file marks to be drawn anew:
        1 *grid booleans, fitted to the sample as it was (None without a mask).

        Raises:
            DataError: one line that names the file and what is wrong (unreadable, or the mask is of another size).
        """
        raise NextscaleError(f"modality {self.name} cannot read samples from files")

    def bench_cases(self) -> list[BenchCase]:
        """What ``nextscale bench train`` times where the user names no preset."""
        return []

    def sample_bench_cases(self) -> list[BenchCase]:
        """What ``nextscale bench sample`` times where the user names no preset; each with a description of data."""
        return []

    # Measurements. ``options`` is an instance of ``ModalityConfig.evaluation``.

    def evaluate_tokenizer(
        self, tokenizer: MultiscaleTokenizer, data: DataSplits, options: Any, context: EvaluationContext
    ) -> dict[str, Any]:
        """Reconstruction metrics on held-out data."""
        return {}

    def evaluate_model(
        self, model: TrainedModel, data: DataSplits, options: Any, context: EvaluationContext
    ) -> dict[str, Any]:
        """Metrics that need the model itself: predictions of held-out samples, say."""
        return {}

    def evaluate_samples(
        self,
        samples: Any,
        conditions: dict[str, Tensor],
        data: DataSplits,
        options: Any,
        context: EvaluationContext,
    ) -> dict[str, Any]:
        """Sample-quality metrics; every distance beside its real-against-real floor at the same count."""
        return {}
