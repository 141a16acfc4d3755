"""Sampling a training that is not finished."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import nextscale
from nextscale.config.run import load_config
from nextscale.errors import CheckpointError, ConfigError
from nextscale.training.run import train
from nextscale.training.signals import Interrupted
from nextscale.training.step import Stepper
from nextscale_cli.main import app

Settings = Callable[..., list[str]]


@pytest.fixture(scope="module")
def interrupted(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped after step 5 of the transformer: checkpoints of steps 4 and 5, and the best of step 2 or 4."""
    run, real = tmp_path_factory.mktemp("interrupted") / "run", Stepper.train_step

    def stop(self: Stepper, batches: list) -> dict[str, float]:
        if (self.stage.name, self.step) == ("transformer", 4):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batches)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Stepper, "train_step", stop)
        train(load_config("image", overrides=tiny()), run)
    return run


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("which", "stored"), [("best", "best/model.safetensors"), ("last", "step-00000005/ema.safetensors")]
)
def test_weights_of_a_checkpoint(interrupted: Path, which: str, stored: str) -> None:
    before = files(interrupted)
    model = nextscale.load(interrupted, "cpu", checkpoint=which)
    expected = load_file(interrupted / "checkpoints/transformer" / stored)
    assert all(torch.equal(value, expected[name]) for name, value in model.transformer.state_dict().items())
    assert model.generate(3, label=[1, 2, 3]).samples.isfinite().all()
    assert files(interrupted) == before


def test_the_best_checkpoint_of_a_finished_run_is_its_result(tiny_run: Path) -> None:
    models = [nextscale.load(tiny_run, "cpu", checkpoint=which) for which in (None, "best")]
    assert torch.equal(*(model.generate(4, seed=2).samples for model in models))


def test_a_tokenizer_from_its_checkpoint(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/tokenizer")
    drawn = nextscale.load(tmp_path / "run", "cpu", checkpoint="best").generate(4, seed=2).samples
    assert torch.equal(drawn, nextscale.load(tiny_run, "cpu").generate(4, seed=2).samples)


def test_best_weights_that_are_being_replaced(interrupted: Path, tmp_path: Path) -> None:
    """A training that goes on has just renamed them. A reader must not undo that."""
    shutil.copytree(interrupted, tmp_path / "run")
    best = tmp_path / "run/checkpoints/transformer/best"
    best.rename(best.with_name(".best.replaced"))
    nextscale.load(tmp_path / "run", "cpu", checkpoint="best")
    assert not best.exists()


def test_what_cannot_be_loaded(interrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown checkpoint 'step-4'; it should be best or last|should be best or"):
        nextscale.load(interrupted, "cpu", checkpoint="step-4")
    with pytest.raises(CheckpointError, match="no run folder at"):
        nextscale.load(tmp_path / "none", "cpu", checkpoint="best")
    with pytest.raises(CheckpointError, match=r"holds no trained transformer: .*with --checkpoint best"):
        nextscale.load(interrupted, "cpu")
    shutil.copytree(interrupted, tmp_path / "run")
    victim = tmp_path / "run/checkpoints/transformer/best/model.safetensors"
    victim.write_bytes(victim.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="is truncated"):
        nextscale.load(tmp_path / "run", "cpu", checkpoint="best")
    shutil.rmtree(tmp_path / "run/checkpoints/transformer")
    for which, what in (("best", "best weights"), ("last", "checkpoint")):
        with pytest.raises(CheckpointError, match=f"has no {what} of its transformer yet"):
            nextscale.load(tmp_path / "run", "cpu", checkpoint=which)


def test_the_command(interrupted: Path, tmp_path: Path) -> None:
    command = ["sample", str(interrupted), "-n", "2", "--device", "cpu", "--checkpoint", "last"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out/grid.png").exists()
    file = tmp_path / "out/single/000000.png"
    command = ["edit", str(interrupted), "--sample", str(file), "--box", "0,0,4,8", "-n", "1", "--device", "cpu"]
    for which in ("best", "last"):
        result = CliRunner().invoke(app, [*command, "--checkpoint", which, "--out", str(tmp_path / which)])
        assert result.exit_code == 0, result.output
        with Image.open(tmp_path / which / "single/000000.png") as picture:
            assert picture.text["checkpoint"] == which  # type: ignore[attr-defined]
    command[0:6] = ["predict", str(interrupted), "--sample", str(file), "--frames", "4"]
    result = CliRunner().invoke(app, [*command, "--checkpoint", "last", "--out", str(tmp_path / "predicted")])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "none")])
    assert result.exit_code == 2 and "with --checkpoint best" in result.output
