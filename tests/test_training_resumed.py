"""Runs that are interrupted, killed, gone back in or damaged, and go on."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import STAGES, Settings, assert_equal_weights, both, fit, losses, weights

from nextscale.errors import NextscaleError
from nextscale.storage.checkpoint_folder import check_checkpoint
from nextscale.training.signals import Interrupted
from nextscale.training.step import Stepper
from nextscale.training.tokenize import tokenize


def test_a_finished_run_is_left_alone(tiny: Settings, tiny_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    fit(tiny, tiny_run, resume="auto")
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before


@pytest.mark.parametrize(
    ("stage", "step", "number", "code"),
    [
        ("tokenizer", 3, signal.SIGINT, 130),
        ("tokenizer", 6, signal.SIGTERM, 143),  # the last step: the stage is trained, but the run is not over
        ("transformer", 3, signal.SIGTERM, 143),
    ],
)
def test_a_signal_saves_and_resuming_is_exact(
    tiny: Settings, tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch,
    stage: str, step: int, number: signal.Signals, code: int,
) -> None:  # fmt: skip
    real = Stepper.train_step

    def interrupted(self: Stepper, batches: list) -> dict[str, float]:
        if self.stage.name == stage and self.step == step - 1:
            os.kill(os.getpid(), number)
        return real(self, batches)

    monkeypatch.setattr(Stepper, "train_step", interrupted)
    with pytest.raises(Interrupted, match=f"{stage} saved at step {step}; continue with --resume auto") as caught:
        fit(tiny, tmp_path / "run")
    assert caught.value.exit_code == code
    monkeypatch.setattr(Stepper, "train_step", real)
    fit(tiny, tmp_path / "run", resume="auto")
    assert_equal_weights(tmp_path / "run", tiny_run)
    for each in STAGES:
        assert losses(tmp_path / "run", each) == losses(tiny_run, each)
        assert losses(tmp_path / "run", each, "validation") == losses(tiny_run, each, "validation")


def test_a_signal_before_training_ends_it(tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("nextscale.training.run.check_run", interrupted)
    with pytest.raises(Interrupted, match=r"^interrupted; continue with --resume auto$") as caught:
        fit(tiny, tmp_path / "run")
    assert caught.value.exit_code == 143 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"data.flip": True}, r"made with data\.flip=false, but this run has true: run `nextscale tokenize`"),
        ({"training.transformer.cache_passes": 2}, r"cache_passes=1, but this run has 2"),
    ],
)
def test_tokens_cached_with_other_settings_are_refused(
    tiny: Settings, tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    run = fit(tiny, tmp_path / "run")
    (run / "transformer/model.safetensors").unlink()
    with pytest.raises(NextscaleError, match=named):
        fit(tiny, run, "auto", **changed)
    tokenize(run, [f"{key}={value}" for key, value in changed.items()])
    fit(tiny, run, "auto", **changed, **{"training.transformer.steps": 7})


def best_step(folder: Path, stage: str = "transformer") -> int:
    return check_checkpoint(folder / "checkpoints" / stage / "best")["step"]


def test_going_back_sets_later_checkpoints_aside(tiny: Settings, tmp_path: Path, tiny_run: Path) -> None:
    run = fit(tiny, tmp_path / "run", stage="tokenizer")
    (run / "tokenizer/model.safetensors").unlink()
    checkpoints = run / "checkpoints/tokenizer"
    fit(tiny, run, str(checkpoints / "step-00000004"), "tokenizer")
    assert (checkpoints / "abandoned-step-00000006").is_dir()
    assert_equal_weights(run, tiny_run, ("tokenizer",))


def test_going_back_gives_up_the_later_best(tiny: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The new course gets worse at once, so its result is the step that it began from."""
    run = fit(tiny, tmp_path / "run", **both(keep=9, lr=3e-3))
    checkpoints, abandoned = run / "checkpoints/transformer", weights(run, "transformer")
    assert best_step(run) == 6
    (run / "transformer/model.safetensors").unlink()
    start = checkpoints / "step-00000002"
    ruin = {"training.transformer.lr": 30.0, "training.transformer.warmup": 0}
    fit(tiny, run, str(start), **both(keep=9), **ruin)
    assert "renamed the best weights, of the later step 6" in capfd.readouterr().err
    saved = load_file(start / "ema.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in weights(run, "transformer").items())
    kept = load_file(checkpoints / "abandoned-best/model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in abandoned.items())


def test_going_back_keeps_an_earlier_best(tiny: Settings, tmp_path: Path) -> None:
    fast = {"training.transformer.lr": 0.3, "training.transformer.warmup": 0.8, "training.transformer.steps": 10}
    run = fit(tiny, tmp_path / "run", **fast, **both(keep=9))
    before, step = weights(run, "transformer"), best_step(run)
    (run / "transformer/model.safetensors").unlink()
    fit(tiny, run, str(run / "checkpoints/transformer/step-00000008"), **fast, **both(keep=9))
    assert best_step(run) == step < 8 and not (run / "checkpoints/transformer/abandoned-best").exists()
    assert all(torch.equal(before[name], value) for name, value in weights(run, "transformer").items())


@pytest.mark.parametrize("former", [True, False])
def test_a_damaged_best_is_told_and_the_one_before_it_counts(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], former: bool
) -> None:
    """Stopped after step 5; the best is step 4, before that step 2. Nothing after step 4 is as good."""
    real = Stepper.train_step

    def stop(self: Stepper, batches: list) -> dict[str, float]:
        if (self.stage.name, self.step) == ("transformer", 4):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batches)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Stepper, "train_step", stop)
        fit(tiny, tmp_path / "run", **both(lr=3e-3))
    run, checkpoints = tmp_path / "run", tmp_path / "run/checkpoints/transformer"
    assert best_step(run) == 4 and check_checkpoint(checkpoints / "best-before")["step"] == 2
    content = bytearray((checkpoints / "best/model.safetensors").read_bytes())
    content[-3] ^= 4
    (checkpoints / "best/model.safetensors").unlink()  # it may share its bytes with a copy
    (checkpoints / "best/model.safetensors").write_bytes(content)
    if not former:
        shutil.rmtree(checkpoints / "best-before")
    capfd.readouterr()
    ruin = {"training.transformer.lr": 30.0, "training.transformer.schedule": "constant"}
    fit(tiny, run, "auto", **ruin)
    said = capfd.readouterr().err
    assert said.count(f"checkpoint {checkpoints / 'best'} is damaged (model.safetensors is corrupt") == 1
    assert said.count("the best weights are now those of step 2") == former
    # Step 5, where training was resumed, has been judged again.
    assert best_step(run) == 5 and (checkpoints / "damaged-best").exists()


def test_a_kill_between_setting_best_aside_and_judging(tiny: Settings, tmp_path: Path, tiny_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "transformer/model.safetensors").unlink()
    checkpoints = run / "checkpoints/transformer"
    (checkpoints / "best").rename(checkpoints / "abandoned-best")
    fit(tiny, run, "auto")
    assert best_step(run) == 6
