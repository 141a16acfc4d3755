"""The contract of a modality: that of its tokenizer, and that of its data, objectives, files and settings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from nextscale.api import Model
from nextscale.config.sections import NoOptions, RunConfig, SamplingConfig
from nextscale.data import DataSplits
from nextscale.device import pick_device
from nextscale.grid import GridModality
from nextscale.modality import Modality, ModalitySpec
from nextscale.plugins import discover, modality_config
from nextscale.testing import modality_checks, output_checks, strategies
from nextscale.testing.contract import TokenizerContract
from nextscale.testing.device_checks import check_device
from nextscale.testing.plugin_checks import (
    check_entry,
    check_options,
    check_presets,
    check_proposals,
    entry_modules,
)
from nextscale.testing.properties import one_thread
from nextscale.testing.second_device import second_device
from nextscale.testing.tiny import transformer_for
from nextscale.tokens.capabilities import EditsPlaces
from nextscale.tokens.tokenizer import MultiscaleTokenizer


class ModalityContract(TokenizerContract):
    """``TokenizerContract`` on a modality's tokenizer and real data, and invariants 21 to 28. Subclass it and write
    three methods."""

    # What a plugin must write.

    def build_modality(self) -> Modality:
        raise NotImplementedError

    def data_config(self) -> Any:
        """The plugin's data section: small data that open at once, with augmentation if there is any."""
        raise NotImplementedError

    def tokenizer_config(self) -> Any:
        """The plugin's tokenizer section: a tiny tokenizer."""
        raise NotImplementedError

    def tokenizer_configs(self) -> Iterable[Any]:
        """Variants of ``tokenizer_config``."""
        return [self.tokenizer_config()]

    # What follows from these.

    def splits(self) -> DataSplits:
        cls = type(self)
        if "_splits" not in cls.__dict__:
            cls._splits = self.build_modality().open_data(self.data_config())  # type: ignore[attr-defined]
        return cls._splits  # type: ignore[attr-defined]

    def build_tokenizer(self) -> MultiscaleTokenizer:
        return self.build_modality().build_tokenizer(self.tokenizer_config(), self.splits().description)

    def build_tokenizers(self) -> list[MultiscaleTokenizer]:
        modality, description = self.build_modality(), self.splits().description
        return [modality.build_tokenizer(config, description) for config in self.tokenizer_configs()]

    def samples(self, tokenizer: MultiscaleTokenizer, num_samples: int, seed: int) -> Any:
        source = self.splits().validation
        return source.batch((seed + np.arange(num_samples)) % len(source), None).samples

    def spec(self) -> ModalitySpec | None:
        """The record of the installed plugin; None if the modality is not installed, as a toy in a test."""
        found = discover().modalities.get(self.build_modality().name)
        return None if found is None else found.spec

    def evaluation_options(self) -> Any:
        """The options of evaluation: the defaults of the plugin's section."""
        spec = self.spec()
        return NoOptions() if spec is None else modality_config(spec.name).evaluation()

    def sample_file(self, folder: Path) -> Path:
        """A file that ``read_sample`` can read: by default what ``write_samples`` writes."""
        return self.build_modality().write_samples(self._decoded()[-1], folder, self.splits().description)[0]

    def _decoded(self, number: int = 3) -> list[Any]:
        """Samples decoded after each scale."""
        with torch.inference_mode():
            tokenizer = self.build_tokenizer().eval()
            states = tokenizer.states(tokenizer.encode(self.samples(tokenizer, number, 0)))
            return [tokenizer.decode(state) for state in states[1:]]

    # The checks.

    def test_data(self) -> None:
        modality_checks.check_data(self.splits())

    def property_augmentation(self, data: st.DataObject) -> None:
        source = self.splits().train
        rows = data.draw(st.lists(st.integers(0, len(source) - 1), min_size=1, max_size=4), "rows")
        modality_checks.check_augmentation(source, self.build_modality(), rows, data.draw(strategies.seeds(), "seed"))

    def property_samples_survive(self, data: st.DataObject) -> None:
        tokenizer, seed = self.draw_tokenizer(data), data.draw(strategies.seeds(), "seed")
        batches = [self.samples(tokenizer, 2, seed) for _ in range(2)]
        modality_checks.check_samples_survive(tokenizer, *batches)

    def test_build(self) -> None:
        for config in self.tokenizer_configs():
            modality_checks.check_build(self.build_modality(), config, self.splits())

    def test_objectives(self) -> None:
        modality_checks.check_objectives(self.build_modality(), self.tokenizer_config(), self.splits())

    def test_writers(self, tmp_path: Path) -> None:
        output_checks.check_writers(self.build_modality(), self._decoded(), 3, tmp_path, self.splits().description)

    def test_parts(self, tmp_path: Path) -> None:
        modality, decoded = self.build_modality(), self._decoded()[-1]
        if not _overrides(modality, "write_parts") or not isinstance(decoded, Tensor) or decoded.dim() < 3:
            raise SkipTest("writing by parts: this modality does not")
        output_checks.check_parts(modality, decoded, tmp_path / "parts", self.splits().description)

    def test_reader(self, tmp_path: Path) -> None:
        modality = self.build_modality()
        if not _overrides(modality, "read_sample"):
            raise SkipTest("reading: this modality does not read samples from files")
        tokenizer, file = self.build_tokenizer().eval(), self.sample_file(tmp_path / "samples")
        tokenizer.description = self.splits().description  # as in a run
        mask = file if isinstance(modality, GridModality) and isinstance(tokenizer, EditsPlaces) else None
        output_checks.check_reader(modality, tokenizer, file, mask)

    def test_evaluation(self) -> None:
        modality, tokenizer, splits = self.build_modality(), self.build_tokenizer().eval(), self.splits()
        transformer = transformer_for(tokenizer, splits.conditions, positions="rotary", scale_embedding=False)
        config = RunConfig.model_construct(modality=modality.name, sampling=SamplingConfig())
        model = Model(modality, tokenizer, transformer, config)
        output_checks.check_evaluation(modality, tokenizer, model, splits, self.evaluation_options())

    def test_options(self) -> None:
        check_options(modality_config(self._installed().name))

    def test_presets(self) -> None:
        check_presets(self._installed())

    def test_proposals(self) -> None:
        modality = self.build_modality()
        if not _overrides(modality, "propose"):
            raise SkipTest("proposals: --minutes trains this modality's default preset")
        self._installed()
        check_proposals(modality, self.splits())

    def test_entry(self) -> None:
        check_entry(entry_modules(self._installed()))

    def test_device(self, tmp_path: Path) -> None:
        """On a device that every machine has, and on the GPU of this one, if it has one."""
        told = self.build_modality(), self.tokenizer_config(), self.splits(), self.evaluation_options()
        with one_thread(), second_device() as device:
            check_device(*told, device, tmp_path / "second")
        gpu = pick_device("auto")
        if gpu.type != "cpu":
            check_device(*told, gpu, tmp_path / gpu.type)

    def _installed(self) -> ModalitySpec:
        spec = self.spec()
        if spec is None:
            raise SkipTest("settings: this modality is not installed")
        return spec


def _overrides(modality: Modality, method: str) -> bool:
    return getattr(type(modality), method) is not getattr(Modality, method)
