"""The contract of a modality: that of its tokenizer, and that of its data, objectives and writers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from nextscale.conditioning import check_conditions
from nextscale.data import DataSplits
from nextscale.modality import Modality
from nextscale.randomness import Draws, sample_seeds
from nextscale.testing import strategies
from nextscale.testing.contract import TokenizerContract
from nextscale.testing.helpers import assert_same, assert_same_tree, leaves
from nextscale.tokens.tokenizer import MultiscaleTokenizer


class ModalityContract(TokenizerContract):
    """``TokenizerContract`` on a modality's tokenizer and real data. Subclass it and write three methods."""

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

    # The checks.

    def test_data(self) -> None:
        """Every split can be read; conditions are within their bounds; the description survives JSON."""
        splits = self.splits()
        assert json.loads(json.dumps(splits.description)) == splits.description
        for source in filter(None, (splits.train, splits.validation, splits.test)):
            indices = np.unique([0, len(source) // 2, len(source) - 1])
            batch = source.batch(indices, None)
            assert batch.conditions.keys() == {spec.name for spec in splits.conditions}
            check_conditions(splits.conditions, batch.conditions)
            assert all(len(value) == len(indices) for value in batch.conditions.values())
            assert_same_tree("data", "samples read again", source.batch(indices, None).samples, batch.samples)

    def property_augmentation(self, data: st.DataObject) -> None:
        """A sample's augmentation is a function of its seed alone."""
        source = self.splits().train
        rows = data.draw(st.lists(st.integers(0, len(source) - 1), min_size=1, max_size=4), "rows")
        seeds = sample_seeds(data.draw(strategies.seeds(), "seed"), np.arange(len(rows)))
        together = source.batch(np.array(rows), seeds)
        singles = [source.batch(np.array([row]), seeds[i : i + 1]) for i, row in enumerate(rows)]
        joined = self.build_modality().concatenate([single.samples for single in singles])
        assert_same_tree("data", "samples read together", together.samples, joined)
        for name, value in together.conditions.items():
            assert_same("data", name, value, torch.cat([single.conditions[name] for single in singles]))

    def test_objectives(self) -> None:
        """Stage 1: the first objective trains the tokenizer; every loss is finite and has gradients."""
        modality, config, splits = self.build_modality(), self.tokenizer_config(), self.splits()
        tokenizer = modality.build_tokenizer(config, splits.description)
        objectives = modality.tokenizer_objectives(tokenizer, config)
        assert bool(objectives) == any(p.requires_grad for p in tokenizer.parameters())
        assert not objectives or objectives[0].model is tokenizer
        indices = np.arange(2)
        batch = splits.train.batch(indices, sample_seeds(0, indices))
        for objective in objectives:
            loss, scalars = objective(batch, 10**9, Draws(0, 0, slice(0, 2), 2))
            assert loss.shape == () and bool(loss.isfinite()), f"{objective.name}: the loss is {loss}"
            assert all(bool(torch.as_tensor(value).isfinite()) for value in scalars.values()), scalars
            loss.backward()
            moved = [p for p in objective.model.parameters() if p.grad is not None and bool(p.grad.any())]
            assert moved, f"{objective.name}: no weight of its model has a gradient"

    def test_writers(self, tmp_path: Path) -> None:
        """Samples, coarse or complete, can be written: one file per sample, an overview, and the film strip."""
        modality, tokenizer = self.build_modality(), self.build_tokenizer().eval()
        with torch.inference_mode():
            states = tokenizer.states(tokenizer.encode(self.samples(tokenizer, 3, 0)))
            steps = [tokenizer.decode(state) for state in states[1:]]
        description = self.splits().description
        files = modality.write_samples(steps[-1], tmp_path / "samples", description)
        assert len(set(files)) == 3
        files += [
            modality.write_grid(steps[-1], tmp_path / "grid", description),
            modality.write_film(steps, tmp_path / "film", description),
        ]
        assert all(file.stat().st_size > 0 for file in files)

    def property_samples_survive(self, data: st.DataObject) -> None:
        """Encoding never changes the samples it is given."""
        tokenizer = self.draw_tokenizer(data)
        seed = data.draw(strategies.seeds(), "seed")
        samples = self.samples(tokenizer, 2, seed)
        tokenizer.encode(samples)
        assert any(True for _ in leaves(samples))
        assert_same_tree("data", "samples after encoding", samples, self.samples(tokenizer, 2, seed))
