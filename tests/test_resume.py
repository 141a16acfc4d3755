"""Resuming with other settings: never ignored, and never mixed into a course whose data order depends on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nextscale.config.run import load_run_config
from nextscale.errors import ConfigError
from nextscale.training.resume import changed, check_resumed

STAGES = ("tokenizer", "transformer")
Make = Callable[..., Path]


@pytest.fixture
def make(tiny_run: Path, tmp_path: Path) -> Make:
    """A run of which some stages are not finished, but have checkpoints: ``make("transformer")``."""

    def make(*half: str, begun: bool = True) -> Path:
        run = tmp_path / "run"
        shutil.copytree(tiny_run, run)
        for stage in half:
            (run / stage / "model.safetensors").unlink()
            if not begun:
                shutil.rmtree(run / "checkpoints" / stage)
        return run

    return make


def resumed(run: Path, *overrides: str, stages: tuple[str, ...] = STAGES) -> list[str]:
    return check_resumed(load_run_config(run, overrides), run, stages)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.transformer.steps=99",
            r"^training\.transformer\.steps=99 \(was 6\) would change nothing: the tokenizer and transformer of .*run "
            r"are trained; to train on with it, remove .*run/transformer first$",
        ),
        ("seed=5", r"^seed=5 \(was 0\) would change nothing: .* train another run with --out$"),
        ("training.tokenizer.lr=0.5", r"^training\.tokenizer\.lr=0\.5 .* train another run with --out$"),
        ("sampling.top_k=9", r"nextscale sample .*run top_k=9$"),
        ("data.source=elsewhere", r"if data was only moved, name its new place in .*run/config\.yaml"),
    ],
)
def test_a_finished_run_does_not_ignore_settings(make: Make, override: str, message: str) -> None:
    run = make()
    with pytest.raises(ConfigError, match=message):
        resumed(run, override)


def test_settings_that_are_the_same_or_harmless(make: Make) -> None:
    run = make()
    assert resumed(run) == resumed(run, "training.transformer.steps=6", "training.device=auto") == []


@pytest.mark.parametrize("stage", STAGES)
def test_what_the_order_of_data_depends_on_stays(make: Make, stage: str) -> None:
    run = make(stage)
    message = rf"its {stage} is half trained with \d, and the order of its data depends on it; leave it out"
    for override in ("seed=5", f"training.{stage}.batch_size=4"):
        with pytest.raises(ConfigError, match=message):
            resumed(run, override)


def test_other_changes_are_told(make: Make) -> None:
    run = make("transformer")
    assert resumed(run, "training.transformer.steps=99", "training.tokenizer.batch_size=4", "sampling.top_k=9") == [
        "training.tokenizer.batch_size=4 (was 8) changes nothing: the tokenizer is trained",
        "training.transformer.steps=99 from now on (was 6)",
    ]


def test_a_stage_that_has_not_begun_may_change(make: Make) -> None:
    run = make("transformer", begun=False)
    assert resumed(run, "seed=5", "training.transformer.batch_size=4", "transformer.depth=2") == []
    with pytest.raises(ConfigError, match=r"the tokenizer of .* is trained"):
        resumed(run, "transformer.depth=2", stages=("tokenizer",))


def test_changed_names_the_settings(make: Make) -> None:
    run = make()
    now = load_run_config(run, ["sampling.temperature={first: 0.5}", "data.size=8", "training.transformer.betas=0,0.5"])
    assert changed(load_run_config(run), now) == [
        ("data.size", None, 8),
        ("training.transformer.betas", [0.9, 0.95], [0.0, 0.5]),
        ("sampling.temperature", 1.0, {"first": 0.5}),
    ]


def test_training_refuses_before_it_writes(make: Make) -> None:
    from nextscale.training.run import train

    run = make()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(ConfigError, match="would change nothing"):
        train(load_run_config(run, ["training.transformer.steps=7"]), run, resume="auto")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    (run / "transformer" / "model.safetensors").unlink()
    train(load_run_config(run, ["training.transformer.steps=7"]), run, resume="auto")
    assert (run / "transformer" / "model.safetensors").exists()
