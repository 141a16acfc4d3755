"""The two parts of a modality that a plugin provides: a cheap record, and the implementation that the record names.

The record is read at every start of the command line, so an entry module must not import torch. The implementation
is imported when a command needs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from nextscale.errors import NextscaleError

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel
    from torch import Tensor

    from nextscale.conditioning import ConditionSpec
    from nextscale.data import DataSplits, Samples
    from nextscale.objective import Objective
    from nextscale.tokens.tokenizer import MultiscaleTokenizer

API_VERSION = 2


@dataclass(frozen=True)
class ModalitySpec:
    """The record by which the core finds a modality.

    Attributes:
        name: the word the user writes after ``--modality``.
        summary: one line for ``nextscale plugins ls``.
        config: dotted path ``package.module:NAME`` of a ``ModalityConfig`` instance (must not import torch).
        implementation: dotted path of a ``Modality`` subclass.
        presets: folder of presets, one YAML file per preset.
        default_preset: the preset used if the user names none.
        samples: the word under which ``nextscale.train`` takes samples from memory, such as ``images``; empty if it
            takes none (``Modality.store_samples``).
        api_version: the version of this interface that the plugin was written for.
    """

    name: str
    summary: str
    config: str
    implementation: str
    presets: Path
    default_preset: str
    samples: str = ""
    api_version: int = API_VERSION


@dataclass(frozen=True)
class ModalityConfig:
    """The modality's own sections of settings: pydantic models that refuse unknown keys (``config.sections.Section``).

    ``data`` and ``tokenizer`` are part of a run's configuration. ``evaluation`` holds options of ``nextscale eval``,
    written ``eval.KEY=VALUE``.
    """

    data: type[BaseModel]
    tokenizer: type[BaseModel]
    evaluation: type[BaseModel]


@dataclass(frozen=True)
class BenchCase:
    """A preset that ``nextscale bench`` times.

    Attributes:
        preset: name of the preset.
        batch_size: None takes the preset's.
        description, conditions: stand in for the preset's data (``DataSplits``), so that the data need not exist.
            Samples are then decoded from random tokens, because timings do not depend on content. If ``description``
            is None, the data is opened.
    """

    preset: str
    batch_size: int | None = None
    description: dict[str, Any] | None = None
    conditions: tuple[ConditionSpec, ...] = ()


@dataclass(frozen=True)
class Proposal:
    """Settings of one size of model for the data at hand. ``nextscale train --minutes`` chooses one of several.

    Attributes:
        settings: as in a preset: sections of settings, but no number of steps and nothing that follows from it.
        steps: the fewest steps of the transformer that make this size better than the next smaller one.
    """

    settings: Mapping[str, Any]
    steps: int = 0


@dataclass(frozen=True)
class ContractCase:
    """A tiny configuration of a modality, on which ``nextscale.testing.run`` checks the contract in about a minute.

    Attributes:
        data: the data section: a few dozen small samples that open at once.
        tokenizer: the tokenizer section: few scales, few codes, narrow networks.
        lossless: whether decode(encode(samples)) is exactly the samples.
        evaluation: the evaluation section, if its defaults take long; None takes the defaults.
    """

    data: BaseModel
    tokenizer: BaseModel
    lossless: bool = False
    evaluation: BaseModel | None = None


@dataclass(frozen=True)
class EvaluationContext:
    """What the core offers to a measurement: the device to compute on, and a folder to cache whatever takes long to
    compute, such as a trained classifier (None caches nothing)."""

    device: torch.device
    cache: Path | None = None


class TrainedModel(Protocol):
    """The part of ``nextscale.api.Model``, which ``nextscale.load`` returns, that a modality or a prediction needs."""

    tokenizer: MultiscaleTokenizer

    @property
    def conditions(self) -> tuple[ConditionSpec, ...]: ...

    def generate(self, num_samples: int, *, seed: int = 0, **settings: Any) -> Samples: ...

    def edit(self, samples: Any, keep: Any, *, seed: int = 0, guess: bool = False, **settings: Any) -> Samples: ...


class Modality(ABC):
    """The implementation behind a ``ModalitySpec``. Stateless: every method gets all it needs as arguments.

    Samples are opaque to the core: it moves a batch with ``.to(device)``, takes its first samples with ``[:number]``
    and joins batches with ``concatenate``.
    Writers get a path without a suffix, add their own suffix, and return the path of what they wrote. ``description``
    describes the data (``DataSplits.description``). ``grid.GridModality`` is the base for samples that are tensors
    B C *grid.
    """

    name: ClassVar[str]

    @abstractmethod
    def open_data(self, config: Any) -> DataSplits:
        """Open the data that ``config`` (the plugin's data section) names.

        Raises:
            DataError: one line that says which file or folder is wrong, why, and what would be right.
        """

    def store_samples(self, samples: Any, labels: Any, path: Path) -> dict[str, Any]:
        """Write samples that the user holds in memory, and their labels (or None), to a file that ``open_data`` reads.

        Args:
            path: without a suffix.

        Returns:
            the data settings that read it: the file, and what conditions on the labels.

        Raises:
            DataError: they are of the wrong kind.
        """
        raise NextscaleError(f"modality {self.name} takes no samples from memory: write them to files")

    @abstractmethod
    def build_tokenizer(self, config: Any, description: dict[str, Any]) -> MultiscaleTokenizer:
        """A fresh tokenizer for data with this ``description`` (``DataSplits.description``)."""

    @abstractmethod
    def tokenizer_objectives(self, tokenizer: MultiscaleTokenizer, config: Any) -> list[Objective]:
        """The objectives of stage 1, in the order in which they are optimised within a step: first the tokenizer's own,
        then that of an opponent (a discriminator), if any. Empty for a tokenizer without weights."""

    @abstractmethod
    def concatenate(self, batches: list[Any]) -> Any:
        """One batch of samples from several."""

    @abstractmethod
    def write_samples(
        self,
        samples: Any,
        folder: Path,
        description: Mapping[str, Any],
        first: int = 0,
        metadata: Sequence[Mapping[str, str]] | None = None,
    ) -> list[Path]:
        """Write each sample to its own file in ``folder``. Returns the files, one per sample, in order.

        Args:
            first: the number of the first sample. A draw is written batch by batch: files are numbered through.
            metadata: for each sample, where it came from (``nextscale.provenance``), for formats that can carry texts.
        """

    def write_archives(self, batches: Iterable[Samples], folder: Path, description: Mapping[str, Any]) -> list[Path]:
        """Write files that hold all samples of a draw into ``folder``, and return them.

        Batches arrive as they are drawn, so that memory need not grow with their number. The iterator ends early where
        the user stops the draw: what it yielded until then makes whole files. By default, there are no such files.
        """
        for _ in batches:
            pass
        return []

    @abstractmethod
    def write_grid(
        self,
        samples: Any,
        path: Path,
        description: Mapping[str, Any],
        columns: int | None = None,
        captions: Sequence[str] | None = None,
    ) -> Path:
        """Write all samples into one picture (or other overview file) that a person can look at.

        ``captions`` has a short text per sample, such as the name of its class (``nextscale.captions``)."""

    @abstractmethod
    def write_film(
        self, steps: list[Any], path: Path, description: Mapping[str, Any], captions: Sequence[str] | None = None
    ) -> Path:
        """Write the coarse-to-fine film strip: one sample per row, scales from left to right.

        ``steps[k]`` holds the same samples decoded after scale k, and ``captions[k]`` says which scale that is, to be
        written on top. The last step may be the originals instead (captioned so)."""

    def write_parts(
        self,
        parts: Iterable[Any],
        path: Path,
        description: Mapping[str, Any],
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        """Write one sample from successive parts along its first axis, as they arrive; each part is a batch of one."""
        raise NextscaleError(f"modality {self.name} cannot write samples piece by piece")

    def read_sample(
        self, path: Path, tokenizer: MultiscaleTokenizer, mask: Path | None = None
    ) -> tuple[Any, Tensor | None]:
        """Read a batch of one sample from a file, in the form that ``tokenizer`` takes, and the mask of what to redraw.

        The mask is 1 *grid booleans, resized and cropped as the sample was, if at all; None if there is no mask file.

        Raises:
            DataError: one line that names the file and says what is wrong (unreadable, or a mask of another size).
        """
        raise NextscaleError(f"modality {self.name} cannot read samples from files")

    def suit_data(self, config: Any) -> dict[str, Any]:
        """Data settings that fit the data, where ``config`` (the plugin's data section) leaves them open; for instance
        a common size. Used by ``nextscale train --minutes``.

        Raises:
            DataError: the data is missing or unreadable.
        """
        return {}

    def propose(self, data: DataSplits) -> list[Proposal]:
        """Models for this data, from small to large, for ``nextscale train --minutes``.

        It times them and takes the largest that gets its ``steps``; if none does, the first. Without proposals, it
        trains the default preset for as long as the time allows.
        """
        return []

    def bench_cases(self) -> list[BenchCase]:
        """The cases that ``nextscale bench train`` times if the user names no preset."""
        return []

    def sample_bench_cases(self) -> list[BenchCase]:
        """The cases that ``nextscale bench sample`` times if the user names no preset. Each has a ``description``."""
        return []

    def contract(self, folder: Path) -> ContractCase | None:
        """The tiny configuration on which the plugin's contract is checked without a test file of its own (``nextscale
        plugins check``). Data that is not built in can be written into ``folder``, which is empty."""
        return None

    # Measurements. ``options`` is an instance of ``ModalityConfig.evaluation``.

    def evaluate_tokenizer(
        self, tokenizer: MultiscaleTokenizer, data: DataSplits, options: Any, context: EvaluationContext
    ) -> dict[str, Any]:
        """Reconstruction metrics on held-out data."""
        return {}

    def evaluate_model(
        self, model: TrainedModel, data: DataSplits, options: Any, context: EvaluationContext
    ) -> dict[str, Any]:
        """Metrics that need the model itself, such as predictions of held-out samples."""
        return {}

    def evaluate_samples(
        self,
        samples: Any,
        conditions: dict[str, Tensor],
        data: DataSplits,
        options: Any,
        context: EvaluationContext,
    ) -> dict[str, Any]:
        """Sample-quality metrics. Every distance comes with its real-against-real floor at the same sample count."""
        return {}
