"""Next-token baselines from the command line: they start from the tokenizer of another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import nextscale
from nextscale_cli.main import app

ONE_STEP = [f"training.transformer.{key}=1" for key in ("steps", "warmup")]


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def raster(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of a next-scale run, and a transformer that draws its tokens one by one."""
    folder = tmp_path_factory.mktemp("orders") / "run"
    result = invoke("train", "--init-from", tiny_run, "--out", folder, "tokenizer.order=raster", *ONE_STEP)
    assert result.exit_code == 0, result.output
    return folder


def test_the_tokenizer_is_that_of_the_other_run(raster: Path, tiny_run: Path) -> None:
    ours, theirs = (load_file(run / "tokenizer" / "model.safetensors") for run in (raster, tiny_run))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    model, base = nextscale.load(raster), nextscale.load(tiny_run)
    assert model.transformer.schedule.lengths == (1,) * base.transformer.schedule.length


def test_it_samples_and_edits(raster: Path, tmp_path: Path) -> None:
    drawn = invoke("sample", raster, "-n", "2", "--out", tmp_path / "drawn")
    assert drawn.exit_code == 0, drawn.output
    picture = tmp_path / "drawn/single/000000.png"
    edited = invoke("edit", raster, "--image", picture, "--box", "0,0,4,8", "--out", tmp_path / "edited")
    assert edited.exit_code == 0, edited.output
    assert (tmp_path / "drawn/film.png").stat().st_size and (tmp_path / "edited").is_dir()


def test_another_order_needs_another_run(raster: Path) -> None:
    result = invoke("train", "--out", raster, "--resume", "auto", "tokenizer.order=spiral")
    assert result.exit_code != 0
    assert "Traceback" not in result.output and "order" in result.output


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["tokenizer.order=diagonal"], "tokenizer.order"),
        (["tokenizer.order=raster", "transformer.in_scale_steps=true"], "every scale is a single token"),
        (["tokenizer.order=raster", "sampling.top_k=[1,2]"], "sampling.top_k has 2 values"),
        (["tokenizer.order=raster", "training.transformer.scale_weights=[1,2]"], "scale_weights"),
    ],
)
def test_wrong_settings_are_named(settings: list[str], told: str, tiny_run: Path, tmp_path: Path) -> None:
    result = invoke("train", "--init-from", tiny_run, "--out", tmp_path / "run", *settings)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.exit_code != 0 and told in " ".join(result.stderr.split()) and "Traceback" not in result.output, lines
    assert not (tmp_path / "run").exists()


def test_the_dry_run_is_short(tiny_run: Path) -> None:
    result = invoke("train", "--init-from", tiny_run, "--dry-run", "tokenizer.order=raster")
    assert result.exit_code == 0, result.output
    assert " times 1x1" in " ".join(result.output.split()) and result.output.count("1x1") == 1
