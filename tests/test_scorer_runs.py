"""Scorers from the command line: trained on a run, resumed, used, shared, and refused with one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import losses, metrics, weights
from typer.testing import CliRunner

import nextscale
from nextscale.config.run import load_run_config
from nextscale.errors import CheckpointError
from nextscale.hub import SCORER
from nextscale.storage.files import json_digest
from nextscale.training.run import train
from nextscale.training.signals import Interrupted
from nextscale.training.step import Stepper
from nextscale_cli.main import app

SETTINGS = {
    "scorer.width": 16, "scorer.heads": 2, "scorer.depth": 1, "training.scorer.steps": 6,
    "training.scorer.batch_size": 8, "training.scorer.log_every": 1, "training.scorer.validate_every": 2,
    "training.scorer.checkpoint_every": 2, "training.scorer.samples_every": 4, "training.scorer.precision": "fp32",
}  # fmt: skip
OVERRIDES = [f"{key}={value}" for key, value in SETTINGS.items()]


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
    return result.stderr


@pytest.fixture(scope="module")
def scored(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("scored") / "run"))
    result = invoke("train", "--stage", "scorer", "--out", folder, "--resume", "auto", *OVERRIDES)
    assert result.exit_code == 0, result.output
    assert "scorer 6/6  validation: loss" in result.stderr
    return folder


@pytest.fixture
def copy(scored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scored, tmp_path / "run"))


def test_what_is_left(scored: Path, tiny_run: Path) -> None:
    assert all((scored / name).is_file() for name in (*SCORER, "samples/scorer-00000006.png"))
    for stage in ("tokenizer", "transformer"):
        name = f"{stage}/model.safetensors"
        assert (scored / name).read_bytes() == (tiny_run / name).read_bytes()
        assert losses(scored, stage) == losses(tiny_run, stage)
    last = metrics(scored, "scorer", "validation")[-1]
    assert {f"{name}/scale{k}" for name in ("loss", "accuracy") for k in range(4)} <= last.keys()
    assert 0 <= last["accuracy"] <= 1 and len(losses(scored, "scorer")) == 6
    report = (scored / "report.html").read_text(encoding="utf-8")
    assert "Loss of the scorer" in report and "Samples while the scorer trained" in report
    assert "scorer is not trained" not in report
    assert load_run_config(scored).training.scorer.steps == 6


def test_resuming_is_exact(tiny_run: Path, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real = Path(shutil.copytree(tiny_run, tmp_path / "run")), Stepper.train_step

    def interrupted(self: Stepper, batches: list) -> dict[str, float]:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batches)

    monkeypatch.setattr(Stepper, "train_step", interrupted)
    with pytest.raises(Interrupted, match="scorer saved at step 3; continue with --stage scorer --resume auto"):
        train(load_run_config(run, OVERRIDES), run, "scorer", "auto")
    monkeypatch.setattr(Stepper, "train_step", real)
    assert nextscale.load(run, device="cpu").scorer is None
    train(load_run_config(run), run, "scorer", "auto")
    ours, theirs = weights(run, "scorer"), weights(scored, "scorer")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert losses(run, "scorer") == losses(scored, "scorer")
    assert losses(run, "scorer", "validation") == losses(scored, "scorer", "validation")


def test_samples_depend_on_seed_and_number_alone(scored: Path, tiny_run: Path) -> None:
    model, plain = (nextscale.load(run, device="cpu") for run in (scored, tiny_run))
    assert torch.equal(model.generate(3, seed=1).samples, plain.generate(3, seed=1).samples)
    drawn = model.generate(5, seed=1, candidates=3)
    again = model.generate(5, seed=1, candidates=3, batch_size=2)
    torch.testing.assert_close(again.samples, drawn.samples, rtol=0, atol=1e-5)
    assert not torch.equal(drawn.samples, model.generate(5, seed=1).samples)


def test_every_command_that_draws(copy: Path, tmp_path: Path) -> None:
    sampled = invoke("sample", copy, "candidates=3", "-n", "2", "--out", tmp_path / "drawn")
    assert sampled.exit_code == 0 and len([*(tmp_path / "drawn" / "single").iterdir()]) == 2, sampled.output
    picture = next((tmp_path / "drawn" / "single").iterdir())
    edited = invoke(
        "edit", copy, "--sample", picture, "--box", "2,2,6,6", "candidates=3", "-n", "1", "--out", tmp_path / "edited"
    )
    assert edited.exit_code == 0, edited.output
    measured = invoke("eval", copy, "candidates=2", "--samples", "20", "--guidance", "1")
    assert measured.exit_code == 0 and '"candidates": 2' in (copy / "eval.json").read_text(), measured.output


def test_it_is_shared(copy: Path, tmp_path: Path) -> None:
    result = invoke("push", copy, tmp_path / "shared")
    assert result.exit_code == 0, result.output
    assert "scorer: 6 steps of 8 samples" in (tmp_path / "shared" / "README.md").read_text()
    drawn = [nextscale.load(run, device="cpu").generate(3, candidates=4).samples for run in (copy, tmp_path / "shared")]
    assert torch.equal(*drawn)


# What is refused.


def test_a_run_that_is_not_trained(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    shutil.rmtree(run / "transformer")
    for folder in (run, tmp_path / "none"):
        message = refused("train", "--stage", "scorer", "--out", folder, "--resume", "auto")
        assert f"{folder} holds no trained transformer: first train one, without --stage scorer" in message
    assert not (tmp_path / "none").exists()


def test_settings_that_do_not_fit(tiny_run: Path, scored: Path) -> None:
    start = ("train", "--stage", "scorer", "--resume", "auto")
    assert "set training.scorer.steps" in refused(*start, "--out", tiny_run, "--minutes", "5")
    assert "even multiple of heads 3" in refused(*start, "--out", tiny_run, "scorer.width=16", "scorer.heads=3")
    other = refused(*start, "--out", tiny_run, "transformer.depth=2")
    assert "trained with different settings: transformer.depth was 1, is now 2" in other
    assert f"remove {scored / 'scorer'} first" in refused(*start, "--out", scored, "training.scorer.steps=9")
    assert "candidates=4 needs a scorer" in refused("sample", tiny_run, "candidates=4")
    assert "candidates=4 needs a scorer" in refused("eval", tiny_run, "candidates=4")
    assert load_run_config(tiny_run).transformer.depth == 1 and not (tiny_run / "scorer").exists()


def test_a_damaged_scorer_and_one_of_another_transformer(copy: Path, tiny_run: Path) -> None:
    model = copy / SCORER[1]
    sound = model.read_bytes()
    model.write_bytes(sound[:-1])
    with pytest.raises(CheckpointError, match=r"scorer/model\.safetensors"):
        nextscale.load(copy, device="cpu")
    model.write_bytes(sound)
    config = load_run_config(copy, ["training.transformer.steps=2", "training.transformer.checkpoint_every=2"])
    shutil.rmtree(copy / "transformer")
    shutil.rmtree(copy / "checkpoints" / "transformer")
    train(config, copy, "transformer", "auto")
    with pytest.raises(CheckpointError, match=r"was trained on what another transformer draws .* train it anew"):
        nextscale.load(copy, device="cpu")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("sampling.require=foo", "sampling.require: unknown requirement 'foo'"),
        ("sampling.temperature=[1,2]", "sampling.temperature has 2 values; this model has 4 scales"),
        ("sampling.smooth=true", "smooth sampling mixes codes"),
    ],
)
def test_sampling_that_a_scorer_cannot_serve_leaves_the_run_as_it_is(
    setting: str, told: str, tiny_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before = (run / "config.yaml").read_text()
    assert told in refused("train", "--stage", "scorer", "--out", run, "--resume", "auto", *OVERRIDES, setting)
    assert (run / "config.yaml").read_text() == before


def test_a_half_trained_scorer_keeps_to_its_draws(copy: Path) -> None:
    shutil.rmtree(copy / "scorer")
    again = ["train", "--stage", "scorer", "--out", copy, "--resume", "auto"]
    assert "its scorer is half trained on what is drawn with the other" in refused(*again, "sampling.guidance=0.25")
    result = invoke(*again, "sampling.candidates=2")
    assert result.exit_code == 0, result.output
    assert "describes the two stages of a model" in refused("train", "--stage", "scorer", "--dry-run", "-p", "digits")


def test_a_half_trained_scorer_keeps_to_its_transformer(copy: Path) -> None:
    """Nothing is written when it is refused. Checkpoints from before transformers were recorded go on."""
    config = load_run_config(copy, ["training.transformer.steps=2", "training.transformer.checkpoint_every=2"])
    for name in ("scorer", "transformer", "checkpoints/transformer"):
        shutil.rmtree(copy / name)
    train(config, copy, "transformer", "auto")
    again = ["train", "--stage", "scorer", "--out", copy, "--resume", "auto"]
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file() and file.name[0] != "."}
    told = refused(*again)
    assert "checkpoints/scorer/step-00000006 goes with another transformer than the run has now: remove" in told
    assert {file: file.read_bytes() for file in before} == before and not (copy / "scorer").exists()
    rewrite_states(copy / "checkpoints/scorer")
    result = invoke(*again, "training.scorer.steps=8")
    assert result.exit_code == 0 and "scorer 8/8" in result.stderr, result.output


def rewrite_states(folder: Path) -> None:
    """Leave out of all checkpoints what they go with."""
    for file in folder.glob("*/state.json"):
        body = json.loads(file.read_text())
        body["state"].pop("rests_on", None)
        del body["sha256"]
        file.write_text(json.dumps(body | {"sha256": json_digest(body)}))
