"""The contract, what is special about sets, and one run from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

from nextscale.plugin import DataError, ModalityContract
from nextscale_cli.main import app
from nextscale_points.config import PointsDataConfig, PointsTokenizerConfig
from nextscale_points.data import open_points
from nextscale_points.modality import PointsModality
from nextscale_points.tokenizer import PointsTokenizer


class TestPoints(ModalityContract):
    examples, few_examples = 10, 5

    def build_modality(self) -> PointsModality:
        return PointsModality()

    def data_config(self) -> PointsDataConfig:
        return PointsDataConfig(points=8)

    def tokenizer_config(self) -> PointsTokenizerConfig:
        return PointsTokenizerConfig(levels=3)

    def check_samples(self, samples: Tensor, num_samples: int) -> None:
        assert samples.shape == (num_samples, 8, 2) and bool((samples.abs() <= 1).all())


@settings(max_examples=30, deadline=None)
@given(axes=st.sampled_from([2, 3]), levels=st.integers(1, 8), seed=st.integers(0, 1000))
def test_points_come_back_as_a_set_to_within_half_a_cell(axes: int, levels: int, seed: int) -> None:
    points = torch.rand(2, 9, axes, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    tokenizer = PointsTokenizer(9, axes, levels)
    back = tokenizer.decode_tokens(tokenizer.encode(points))
    distance = (points[:, :, None] - back[:, None]).abs().amax(-1)
    assert (distance.min(2).values <= 2.0**-levels + 1e-6).all() and (
        distance.min(1).values <= 2.0**-levels + 1e-6
    ).all()
    shuffled = points[:, torch.randperm(9, generator=torch.Generator().manual_seed(seed))]
    assert torch.equal(tokenizer.encode(shuffled).tokens, tokenizer.encode(points).tokens)


def test_trains_samples_and_evaluates(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    tiny = ["training.transformer.steps=4", "transformer.depth=1", "data.points=8", "training.device=cpu"]
    for command in (
        ["train", "-m", "points", "--out", run, *tiny],
        ["sample", run, "-n", "4", "label=cross"],
        ["eval", run, "--samples", "6"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("array", "message"),
    [(np.zeros((4, 5)), "P points"), (np.full((4, 5, 2), np.nan), "not finite"), (np.zeros((1, 5, 2)), "too few")],
)
def test_data_that_is_wrong_is_one_line(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=array)
    with pytest.raises(DataError, match=message):
        open_points(PointsDataConfig(source=str(tmp_path / "x.npz")))


def test_dry_run_has_no_steps_for_a_tokenizer_without_weights():
    result = CliRunner().invoke(app, ["train", "--modality", "points", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "no weights to train" in result.stdout
    assert "tokenizer.steps" not in result.stdout and "transformer.steps" in result.stdout
