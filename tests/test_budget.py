"""``train --minutes``: the clock keeps a stage to its time, the past never changes, and what is chosen fits."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner

from nextscale import plugins
from nextscale.config.run import NO_PRESET, load_config, load_run_config
from nextscale.config.sections import StageConfig
from nextscale.errors import ConfigError
from nextscale.modality import Proposal
from nextscale.training import clock
from nextscale.training import run as training_run
from nextscale.training.cache import open_or_write_tokens
from nextscale.training.clock import Pace, RunClock, ending_at, with_steps
from nextscale.training.optim import cooldown_begins, lr_factor
from nextscale.training.pilot import Pilot, Timing
from nextscale.training.plan import plan
from nextscale.training.run import train
from nextscale.training.signals import Interrupted
from nextscale_cli.main import app

SCHEDULES = st.sampled_from(["trapezoid", "cosine", "linear", "constant"])


def stages(schedule: str, steps: int) -> StageConfig:
    return StageConfig.model_validate({"schedule": schedule, "steps": steps})


class Simulated:
    """A stage whose steps take the given seconds; the clock is a number."""

    def __init__(self, config: StageConfig, budget: float) -> None:
        self.config, self.budget, self.now, self.step = config, budget, 0.0, 0
        self.pace = Pace(lambda: budget - self.now, budget, clock=lambda: self.now)
        self.changes: list[tuple[int, StageConfig]] = []

    def run(self, seconds: list[float]) -> None:
        while self.step < self.config.steps:
            self.now += seconds[min(len(seconds) - 1, int(self.now / self.budget * len(seconds)))]
            self.step += 1
            steps = self.pace.steps(self.step, self.config)
            assert steps >= self.step
            if steps != self.config.steps:
                self.config = with_steps(self.config, steps)
                self.changes.append((self.step, self.config))


@given(SCHEDULES, st.integers(100, 3000), st.integers(100, 3000))
def test_a_stage_ends_in_time_however_wrong_the_plan(schedule: str, planned: int, possible: int) -> None:
    assume(planned * 10 >= possible)
    stage = Simulated(stages(schedule, planned), budget=100.0)
    stage.run([100.0 / possible])
    assert stage.now == pytest.approx(100, abs=10)


@given(st.integers(200, 2000), st.lists(st.floats(0.7, 1.4), min_size=4, max_size=4))
def test_a_stage_ends_in_time_although_the_speed_changes(planned: int, slower: list[float]) -> None:
    """The length of the cool-down, a quarter of the steps, is settled when it begins. So a stage is never late, but
    ends early if steps take less time from then on."""
    stage = Simulated(stages("trapezoid", planned), budget=100.0)
    stage.run([0.1 * factor for factor in slower])
    gained = max(0.0, 1 - min(slower[2:]) / max(slower))
    assert 95 - 25 * gained <= stage.now <= 110


@given(st.integers(100, 3000), st.integers(100, 3000), st.floats(0.05, 0.9))
def test_the_clock_never_changes_the_past(planned: int, possible: int, cooldown: float) -> None:
    """The learning rates of all steps taken are those that the final numbers of steps would have given."""
    first = StageConfig(schedule="trapezoid", steps=planned, cooldown=cooldown)
    stage = Simulated(first, budget=100.0)
    stage.run([100.0 / possible])
    last = stage.config
    for step, config in stage.changes:
        if config is not last:
            continue  # a late end was mended, or an early forecast
        upto = min(step, cooldown_begins(first), cooldown_begins(config))
        assert all(lr_factor(s, first) == lr_factor(s, config) for s in range(upto))


@given(st.integers(1, 5000), st.floats(0, 0.95), st.floats(0, 0.2))
def test_ending_at_begins_the_cool_down_here(step: int, cooldown: float, warmup: float) -> None:
    config = StageConfig(schedule="trapezoid", steps=10_000, cooldown=cooldown, warmup=warmup)
    ended = with_steps(config, ending_at(step, config))
    assert step <= cooldown_begins(ended) <= max(step + 1, round(ended.warmup * ended.steps))
    assert round(ended.warmup * ended.steps) == min(ended.steps, round(config.warmup * config.steps))
    assert ending_at(step, config.model_copy(update={"schedule": "cosine"})) == step


@given(st.integers(2, 2000), st.floats(0.01, 0.99))
def test_the_trapezoid(steps: int, cooldown: float) -> None:
    config = StageConfig(schedule="trapezoid", steps=steps, cooldown=cooldown, warmup=0.0)
    rates = [lr_factor(step, config) for step in range(steps)]
    begin = cooldown_begins(config)
    assert rates[:begin] == [1.0] * begin and rates == sorted(rates, reverse=True)
    if steps - begin > 1:
        assert rates[-1] == pytest.approx(config.final_lr)


def test_seconds_of_earlier_processes_count(tmp_path: Path) -> None:
    clock = RunClock(tmp_path, 1.0)
    clock.before = 40.0
    clock.save()
    assert 15 < RunClock(tmp_path, 1.0).left() <= 20
    (tmp_path / "clock.json").write_text('{"seconds": "x"}')
    assert 59 < RunClock(tmp_path, 1.0).left() <= 60
    assert RunClock(tmp_path, None).left() == float("inf")


# In real runs


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "transformer" / "model.safetensors")


QUICK = {
    f"training.transformer.{key}": value
    for key, value in {"schedule": "trapezoid", "steps": 40, "validate_every": 5, "checkpoint_every": 10}.items()
}


def test_a_run_resumes_exactly_with_the_steps_that_the_clock_chose(tiny, tmp_path: Path, monkeypatch) -> None:
    """The clock says after 20 steps that the time is up. A run that is interrupted after that has the same weights."""

    def steps(self: Pace, step: int, config: StageConfig) -> int:
        return ending_at(20, config) if step == 20 else config.steps

    monkeypatch.setattr(Pace, "steps", steps)
    settings = tiny(**{**QUICK, "training.minutes": 60, "training.transformer.warmup": 0.1})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(load_config("image", overrides=settings), whole)
    config = load_run_config(whole).training.transformer
    assert config.steps == 26 and cooldown_begins(config) == 20 and round(config.warmup * config.steps) == 4

    from nextscale.training.step import Stepper

    real = Stepper.train_step

    def interrupted(self: Stepper, batches: list) -> dict[str, float]:
        if self.stage.name == "transformer" and self.step == 22:
            raise Interrupted("killed", 130)
        return real(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "train_step", interrupted)
        with pytest.raises(Interrupted):
            train(load_config("image", overrides=settings), broken)
    assert load_run_config(broken).training.transformer.steps == 26, "the choice is recorded at once"
    train(load_run_config(broken), broken, resume="auto")
    one, other = weights(whole), weights(broken)
    assert all(torch.equal(one[name], other[name]) for name in one)

    again = tmp_path / "again"  # the recorded numbers give the same run, without a clock
    monkeypatch.setattr(Pace, "steps", lambda self, step, config: config.steps)
    train(load_run_config(whole, ["training.minutes=null"]), again)
    assert all(torch.equal(one[name], value) for name, value in weights(again).items())


@pytest.mark.parametrize("counts", [True, False])
def test_writing_the_token_cache_need_not_count(counts: bool, tiny, tmp_path: Path, monkeypatch) -> None:
    """It takes an hour here, of 50 minutes."""
    passed, left = [0.0], []
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0]))

    def slow(*arguments: Any) -> Any:
        stores = open_or_write_tokens(*arguments)
        passed[0] += 3600
        return stores

    def steps(self: Pace, step: int, config: StageConfig) -> int:
        left.append(self.left())
        return config.steps

    monkeypatch.setattr(training_run, "open_or_write_tokens", slow)
    config = load_config("image", overrides=tiny(**{"training.minutes": 50}))
    train(config, tmp_path / "run", "tokenizer")
    monkeypatch.setattr(Pace, "steps", steps)
    train(config, tmp_path / "run", "transformer", "auto", counts_caching=counts)
    assert left and all((seconds < 0) == counts for seconds in left)
    assert (RunClock(tmp_path / "run", 50).before > 3600) == counts


def test_training_cools_down_when_validation_stands_still(tiny, tmp_path: Path) -> None:
    """A learning rate of nearly zero: nothing gets better beyond the first validations."""
    still = {"training.transformer.lr": 1e-12, "training.transformer.patience": 2, "training.transformer.ema": 0}
    run = tmp_path / "run"
    train(load_config("image", overrides=tiny(**{**QUICK, **still})), run)
    config = load_run_config(run).training.transformer
    assert config.steps < 40
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines if line["stage"] == "transformer") == config.steps
    cosine = {**QUICK, **still, "training.transformer.schedule": "cosine"}
    train(load_config("image", overrides=tiny(**cosine)), tmp_path / "cosine")
    assert load_run_config(tmp_path / "cosine").training.transformer.steps <= 30, "it ends at once"


def test_the_largest_size_that_gets_its_steps_is_chosen(monkeypatch, digits_file: Path) -> None:
    sizes = [
        Proposal({"tokenizer": {"scales": [1, 2, 4], "multipliers": [1, 2]}, "transformer": {"depth": d}}, needed)
        for d, needed in ((1, 0), (2, 500), (3, 2000), (4, 9000))
    ]
    modality = type(plugins.modality("image"))
    monkeypatch.setattr(modality, "propose", lambda self, data: sizes)
    times = {1: 0.01, 2: 0.02, 3: 0.04, 4: 0.08}
    asked = []

    def time(self: Pilot, config) -> Timing:
        asked.append(config.transformer.depth)
        return Timing(0.05, times[config.transformer.depth], 0.001, 10**6, 21)

    monkeypatch.setattr(Pilot, "time", time)
    monkeypatch.setattr(Pilot, "fewer_threads", lambda self, config: None)

    def configure(proposal):
        return load_config("image", NO_PRESET, overrides=[f"data={digits_file}", "seed=7"], proposal=proposal)

    planned = plan(configure, 2, propose=True)
    assert planned.config.transformer.depth == 3 and asked == [1, 2, 3, 4]
    stage = planned.config.training.transformer
    assert 0.04 * stage.steps == pytest.approx(0.75 * 120 * 0.92, rel=0.05)
    assert planned.config.training.tokenizer.steps == pytest.approx(0.25 * 120 * 0.92 / 0.05, rel=0.05)
    assert planned.config.seed == 7 and planned.config.training.minutes == 2
    assert load_config("image", None, None, ["preset=none"]).training.minutes is None
    asked.clear()
    assert plan(configure, 0.1, propose=True).config.transformer.depth == 1 and asked == [1, 2]


def test_one_thread_on_a_busy_machine(monkeypatch, digits_file: Path) -> None:
    """Steps take three times as long on two threads as on one."""
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(
            Pilot, "time", lambda self, config, **k: Timing(0, 0.01 * 3 ** torch.get_num_threads(), 0, 9, 9)
        )
        monkeypatch.setattr(type(plugins.modality("image")), "propose", lambda self, data: [Proposal({})])
        config = plan(
            lambda proposal: load_config("image", NO_PRESET, overrides=[f"data={digits_file}"], proposal=proposal),
            1,
            propose=True,
        ).config
        assert config.training.threads == 1 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(usual)


def test_a_preset_keeps_its_proportions(monkeypatch, tiny) -> None:
    monkeypatch.setattr(Pilot, "time", lambda self, config: Timing(0.01, 0.03, 0.0, 10**6, 21))
    settings = tiny(**{"training.tokenizer.steps": 300, "training.transformer.steps": 100, "transformer.depth": 2})

    def configure(proposal):
        plain = [text for text in settings if ".steps=" not in text]
        base = {"training": {"tokenizer": {"steps": 300}, "transformer": {"steps": 100}}}
        return load_config("image", "digits", None, plain, proposal=proposal or base)

    config = plan(configure, 1, propose=False).config
    assert config.training.tokenizer.steps == pytest.approx(3 * config.training.transformer.steps, rel=0.02)
    assert config.training.tokenizer_share == pytest.approx(0.5, abs=0.01)
    assert config.training.transformer.schedule == "cosine" and config.transformer.depth == 2


@pytest.mark.parametrize("minutes", ["0", "-3", "nan", "inf"])
def test_minutes_that_are_none(minutes: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["train", "-m", "image", f"--minutes={minutes}", "--out", str(tmp_path / "x")])
    assert done.exit_code != 0 and "--minutes" in done.output and "Traceback" not in done.output
    assert not (tmp_path / "x").exists()


def test_several_processes_do_not_plan(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--minutes plans on one process"):
        plan(lambda proposal: load_config("image", NO_PRESET, proposal=proposal), 1, propose=True)


@pytest.mark.parametrize("modality", ["image", "video", "graph"])
def test_the_command(modality: str, time_is_short: None, tmp_path: Path) -> None:
    """Some seconds are enough for every step of it, if not for a good model."""
    (tmp_path / "data").mkdir()
    case = plugins.modality(modality).contract(tmp_path / "data")
    assert case is not None
    run, data = (
        tmp_path / "run",
        [f"data.{key}={value}" for key, value in case.data.model_dump(exclude_defaults=True).items()],
    )
    arguments = ["train", "-m", modality, *data, "--minutes", "0.4", "--out", str(run)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "chosen: " in done.output
    config = load_run_config(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = max(line["step"] for line in lines if line["stage"] == "transformer")
    assert config.training.minutes == 0.4 and config.training.transformer.steps == steps
    assert (run / "transformer" / "model.safetensors").exists()
    assert json.loads((run / "clock.json").read_text())["seconds"] > 0
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code != 0 and "--resume auto" in again.output
    assert CliRunner().invoke(app, [*arguments, "--resume", "auto"]).exit_code == 0


def test_too_little_time_is_said(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["train", "-m", "image", "--minutes", "0.001", "--out", str(tmp_path / "run")])
    assert done.exit_code != 0 and "too short" in done.output and not (tmp_path / "run").exists()
