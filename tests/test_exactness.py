"""SIGKILL at any moment, then ``--resume auto``: the final weights are those of an uninterrupted run, bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

Settings = Callable[..., list[str]]

# A process that imports torch once and forks once per attempt. The child kills itself shortly after a given step (or
# the run) begins, wherever it is at that moment. The process prints how each attempt ended.
DRIVER = """
import json, os, signal, sys, threading, time
from pathlib import Path
from nextscale_cli.main import app
from nextscale.training import loop, run

def attempt(arguments, stage, step, delay):
    def kill_soon():
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        try:
            real = loop.Trainer._train_step
            def train_step(self, batches):
                if (self.stage.name, self.step) == (stage, step):
                    kill_soon()
                return real(self, batches)
            loop.Trainer._train_step = train_step
            if stage == "":
                kill_soon()
            app(["train", "--resume", "auto", *arguments])
        except SystemExit as error:
            os._exit(error.code or 0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        os._exit(99)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), time.perf_counter() - started

arguments, attempts = json.loads(sys.argv[1])
for each in attempts:
    print(json.dumps(attempt(arguments, *each)), flush=True)
"""


def run_attempts(folder: Path, settings: list[str], attempts: list[tuple[str, int, float]]) -> list[tuple[int, float]]:
    """Exit code (negative for a signal) and seconds of each attempt at the same run."""
    plan = json.dumps([["--out", str(folder), *settings], attempts])
    done = subprocess.run([sys.executable, "-c", DRIVER, plan], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def assert_equal_weights(a: Path, b: Path) -> None:
    for stage in ("tokenizer", "transformer"):
        left, right = (load_file(run / stage / "model.safetensors") for run in (a, b))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left), stage


def losses(run: Path) -> list[tuple[Any, ...]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["kind"], line["step"], line["loss"]) for line in found]


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
