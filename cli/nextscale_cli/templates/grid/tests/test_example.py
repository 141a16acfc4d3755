"""The contract that every modality keeps, and one run from the command line."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from nextscale.plugin import ModalityContract
from nextscale_cli.main import app
from nextscale_example.config import ExampleDataConfig, ExampleTokenizerConfig
from nextscale_example.modality import ExampleModality

SMALL = {"channels": 4, "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": False, "shortcut": True}


class TestExample(ModalityContract):
    examples, few_examples = 10, 5

    def build_modality(self) -> ExampleModality:
        return ExampleModality()

    def data_config(self) -> ExampleDataConfig:
        return ExampleDataConfig()

    def tokenizer_config(self) -> ExampleTokenizerConfig:
        return ExampleTokenizerConfig(**SMALL, scales=(1, 2, 4), quantizer={"codes": 16, "phi_count": 2})


def test_trains_samples_and_evaluates(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    steps = ["training.tokenizer.steps=4", "training.transformer.steps=4", "training.device=cpu"]
    for command in (
        ["train", "-m", "example", "--out", run, *steps],
        ["sample", run, "-n", "4"],
        ["eval", run, "--samples", "8", "--guidance", "1", "eval.classifier_epochs=1"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "eval.json").exists()


def test_data_that_is_wrong_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"not an archive")
    result = CliRunner().invoke(
        app, ["train", "-m", "example", f"data={tmp_path / 'x.npz'}", "--out", str(tmp_path / "r")]
    )
    assert result.exit_code == 2 and "x.npz" in result.stderr and not (tmp_path / "r").exists()
