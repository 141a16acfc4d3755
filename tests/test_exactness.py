"""SIGKILL at any moment, then ``--resume auto``: the final weights are those of an uninterrupted run, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from killing import assert_equal_weights, losses, run_attempts

Settings = Callable[..., list[str]]


def test_a_kill_in_each_stage(tiny: Settings, tiny_run: Path, tmp_path: Path) -> None:
    ends = run_attempts(
        tmp_path / "run", tiny(), [("tokenizer", 4, 0.02), ("transformer", 3, 0.05), ("no stage", 0, 0.0)]
    )
    assert [code for code, _ in ends] == [-9, -9, 0]
    assert_equal_weights(tmp_path / "run", tiny_run)
    assert losses(tmp_path / "run") == losses(tiny_run)
    left = [path.name for path in (tmp_path / "run").rglob(".*")]
    assert not left, "leftovers of killed processes were cleared away"


def test_leftovers_of_a_kill_after_the_last_step_are_removed(tiny: Settings, tiny_run: Path, tmp_path: Path) -> None:
    """The kill came while an older checkpoint was being removed. All steps are done, so nothing is saved again."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    shutil.rmtree(run / "transformer")
    left = run / "checkpoints" / "transformer" / ".step-00000001.partial"
    left.mkdir()
    (left / "state.json").write_text("{")
    assert run_attempts(run, tiny(), [("no stage", 0, 0.0)])[0][0] == 0
    assert not left.exists()
    assert_equal_weights(run, tiny_run)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_five_kills_at_random_moments(tiny: Settings, tmp_path: Path, stage: str) -> None:
    """Kills hit while the run starts, trains, validates, saves, draws samples, or writes the token cache."""
    every = {"steps": 60, "validate_every": 7, "checkpoint_every": 5, "samples_every": 20}
    changes = {f"training.{name}.{key}": value for name in ("tokenizer", "transformer") for key, value in every.items()}
    ((code, seconds),) = run_attempts(tmp_path / "whole", tiny(**changes), [("no stage", 0, 0.0)])
    assert code == 0
    chance = torch.rand(2, 5, generator=torch.Generator().manual_seed(len(stage))).tolist()
    # First at random times; then, in each fifth of the stage, up to three step times after one of its early steps.
    attempts = [("", 0, each * seconds / 4) for each in chance[0]]
    attempts += [(stage, 12 * i + int(6 * each), 3 * seconds / 120 * chance[0][i]) for i, each in enumerate(chance[1])]
    ends = run_attempts(tmp_path / "run", tiny(**changes), [*attempts, ("no stage", 0, 0.0)])
    codes = [code for code, _ in ends]
    assert codes.count(-9) >= 5 and codes[-1] == 0 and set(codes) <= {-9, 0}, ends
    print(f"killed {codes.count(-9)} times: {ends}")
    assert_equal_weights(tmp_path / "run", tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
