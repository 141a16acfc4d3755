"""Starting from the weights of another run: what is kept, what is new, and what does not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import nextscale
from nextscale_cli.main import app

Settings = Callable[..., list[str]]
ONE_STEP = [f"training.{stage}.{key}=1" for stage in ("tokenizer", "transformer") for key in ("steps", "warmup")]
FROZEN = [*ONE_STEP, "training.transformer.lr=1e-30", "training.tokenizer.lr=1e-30"]
"""A step this small changes nothing, so a stage ends with the weights that it started from."""


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def trained(*arguments: str | Path) -> str:
    result = invoke("train", *arguments)
    assert result.exit_code == 0, result.output
    return result.stderr


@pytest.fixture(scope="module")
def fewer(digits_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same digits, but only 0 to 4."""
    everything = np.load(digits_file)
    path = tmp_path_factory.mktemp("fewer") / "digits.npz"
    kept = {split: everything[f"y_{split}"] < 5 for split in ("train", "val")}
    np.savez(path, **{f"{axis}_{split}": everything[f"{axis}_{split}"][kept[split]] for axis in "xy" for split in kept})
    return path


def weights(run: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(run / part / "model.safetensors")


def test_other_classes(tiny_run: Path, fewer: Path, tmp_path: Path) -> None:
    """The whole tokenizer is kept, and all of the transformer except the class embedding."""
    run = tmp_path / "run"
    notes = trained("--init-from", tiny_run, "--out", run, f"data={fewer}", *FROZEN)
    assert "newly initialised: conditioner.embed.label.weight" in notes
    assert not (run / "checkpoints/tokenizer").exists()
    old, new = weights(tiny_run, "tokenizer"), weights(run, "tokenizer")
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)

    old, new = weights(tiny_run, "transformer"), weights(run, "transformer")
    classes = new.pop("conditioner.embed.label.weight")
    assert torch.equal(classes, old["conditioner.embed.label.weight"][:5])
    assert old.keys() - new.keys() == {"conditioner.embed.label.weight"}
    assert all(torch.equal(old[name], new[name]) for name in new)
    model = nextscale.load(run, "cpu")
    assert model.conditions[0].size == 5 and model.config.training.init == str(tiny_run.resolve())
    assert model.generate(5).samples.shape == (5, 1, 8, 8)


def test_the_same_classes_are_kept(tiny_run: Path, tmp_path: Path) -> None:
    trained("--init-from", tiny_run, "--out", tmp_path / "run", *FROZEN)
    old, new = weights(tiny_run, "transformer"), weights(tmp_path / "run", "transformer")
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)


def test_both_stages_or_the_first(tiny_run: Path, fewer: Path, tmp_path: Path) -> None:
    for stage in ("all", "tokenizer"):
        run = tmp_path / stage
        trained("--init-from", tiny_run, "--stage", stage, "--out", run, f"data={fewer}", *FROZEN)
        assert (run / "checkpoints/tokenizer").exists() and (run / "transformer").exists() == (stage == "all")
        old, new = weights(tiny_run, "tokenizer"), weights(run, "tokenizer")
        moved = {name for name in old if not torch.equal(old[name], new[name])}
        assert all(name.startswith("pyramid.quantizer.") for name in moved), "only the quantizer follows the data"


def test_a_tokenizer_to_build_on(tiny_run: Path, tmp_path: Path) -> None:
    """The other run holds only a tokenizer, so the transformer is new."""
    shutil.copytree(tiny_run, tmp_path / "half", ignore=shutil.ignore_patterns("transformer", "tokens.zarr"))
    trained("--init-from", tmp_path / "half", "--out", tmp_path / "run", "transformer.depth=2", *ONE_STEP)
    assert any(name.startswith("blocks.1.") for name in weights(tmp_path / "run", "transformer"))


def test_resumed_without_the_run_it_started_from(tiny_run: Path, fewer: Path, tmp_path: Path) -> None:
    """A checkpoint is complete: the run that training started from is no longer needed."""
    settings = [f"data={fewer}", "training.transformer.steps=4"]
    trained("--init-from", tiny_run, "--out", tmp_path / "whole", *settings)
    start = Path(shutil.copytree(tiny_run, tmp_path / "start"))
    trained("--init-from", start, "--out", tmp_path / "run", *settings)
    shutil.rmtree(start)
    shutil.rmtree(tmp_path / "run/transformer")
    shutil.rmtree(tmp_path / "run/checkpoints/transformer/step-00000004")
    shutil.rmtree(tmp_path / "run/checkpoints/transformer/best")
    trained("--out", tmp_path / "run", "--resume", "auto", "--stage", "transformer")
    one, other = (weights(tmp_path / name, "transformer") for name in ("whole", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["transformer.width=64"], "transformer: blocks.0.adaln.bias is 192 there and 384 with these settings"),
        (["transformer.depth=2"], "blocks.1.adaln.bias is missing there and 192 with these settings"),
        (["tokenizer.quantizer.phi_ratio=0.3"], "with different settings: quantizer.phi_ratio was 0.5, is now 0.3"),
        (["data.channels=3"], "decoder.conv_out.bias is 1 there and 3 with these settings"),
        (["--stage", "tokenizer", "tokenizer.width=16"], "decoder.conv_in.bias is 16 there and 32 with these settings"),
    ],
)
def test_what_does_not_fit(tiny_run: Path, tmp_path: Path, changes: list[str], message: str) -> None:
    result = invoke("train", "--init-from", tiny_run, "--out", tmp_path / "run", *changes)
    assert result.exit_code == 2 and message in result.stderr.splitlines()[-1], result.output
    assert not (tmp_path / "run").exists()


def test_no_run_to_start_from(tmp_path: Path) -> None:
    result = invoke("train", "--init-from", tmp_path / "nothing", "--out", tmp_path / "run")
    assert result.exit_code == 2 and "nothing/config.yaml does not exist" in result.stderr, result.output
