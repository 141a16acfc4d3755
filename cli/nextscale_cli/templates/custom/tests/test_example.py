"""The contract that every modality keeps, and one run from the command line."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from typer.testing import CliRunner

from nextscale.plugin import ModalityContract
from nextscale_cli.main import app
from nextscale_example.config import ExampleDataConfig, ExampleTokenizerConfig
from nextscale_example.modality import ExampleModality


class TestExample(ModalityContract):
    examples, few_examples = 10, 5
    lossless = True  # decode(encode(samples)) is exactly the samples

    def build_modality(self) -> ExampleModality:
        return ExampleModality()

    def data_config(self) -> ExampleDataConfig:
        return ExampleDataConfig()

    def tokenizer_config(self) -> ExampleTokenizerConfig:
        return ExampleTokenizerConfig()

    def check_samples(self, samples: Tensor, num_samples: int) -> None:
        assert samples.shape[0] == num_samples and 0 <= int(samples.min()) <= int(samples.max()) < 64
        assert samples.dtype == torch.long


def test_trains_samples_and_evaluates(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    for command in (
        ["train", "-m", "example", "--out", run, "training.transformer.steps=4", "training.device=cpu"],
        ["sample", run, "-n", "4"],
        ["eval", run, "--samples", "8"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "eval.json").exists()


def test_data_that_is_wrong_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"not an archive")
    command = ["train", "-m", "example", f"data={tmp_path / 'x.npz'}", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "x.npz" in result.stderr and not (tmp_path / "run").exists()
