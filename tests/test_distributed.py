"""Two gloo processes train the same as one, within rounding, each with all weights or with a part of them, and one
process continues where two stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nextscale.config.run import load_config
from nextscale.errors import ConfigError
from nextscale.training import tokenizer_stage
from nextscale.training.run import train
from nextscale.training.sharding import group_size

Settings = Callable[..., list[str]]

# Does what torchrun does for some processes on one machine, but forks them from this one, which has imported torch.
DRIVER = """
import json, os, signal, sys
from nextscale_cli.main import app
from nextscale.training import step, tokenizer_stage

arguments, stop, processes, validation = json.loads(sys.argv[1])
tokenizer_stage.validation_batches.__defaults__ = (validation,)
children = []
for rank in range(processes):
    child = os.fork()
    if child == 0:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1")
        real = step.Stepper.train_step
        def train_step(self, batches):
            if [self.stage.name, self.step, rank] == [*stop, processes - 1]:  # only one is asked to stop
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, batches)
        step.Stepper.train_step = train_step
        code = 0
        try:
            app(["train", *arguments])
        except SystemExit as error:
            code = error.code or 0
        sys.stderr.flush()
        os._exit(code)
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""

EVERYTHING: dict[str, Any] = {
    "data.crop": 7,
    "data.flip": True,
    "tokenizer.multipliers": "[1]",
    "tokenizer.quantizer.update": "ema",
    "tokenizer.quantizer.revive_below": 0.5,
    "tokenizer.quantizer.scale_dropout": 0.5,
    # No scale uses one of its convolutions, which DDP must know.
    "tokenizer.quantizer.phi": "partial",
    "tokenizer.quantizer.phi_count": 5,
    "tokenizer.adversarial.weight": 0.1,
    "tokenizer.adversarial.start": 2,
    "tokenizer.adversarial.width": 4,
    "transformer.drop_path": 0.5,
    "transformer.in_scale_steps": True,
    "training.transformer.condition_drop": 0.5,
    "training.transformer.corrupt": 0.2,
    "training.transformer.accumulate": 2,
}


def launch(
    folder: Path, settings: list[str], stop: tuple[str, int] | None = None, processes: int = 2, validation: int = 128
) -> tuple[list[int], str]:
    """Exit codes of the processes, and their stderr. ``validation`` is the size of validation batches."""
    plan = json.dumps([["--out", str(folder), *settings], stop or ["", -1], processes, validation])
    done = forks.run(DRIVER, plan, environment={**os.environ, "MASTER_PORT": forks.free_port()})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def assert_same_curves(a: Path, b: Path, rtol: float = 2e-4) -> None:
    """Every logged number of both stages is the same, except speeds."""
    lines = [[json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()] for run in (a, b)]
    assert len(lines[0]) == len(lines[1])
    for left, right in zip(*lines, strict=True):
        assert left.keys() == right.keys()
        for key in left.keys() - {"tokens_per_second", "waiting_for_data"}:
            if isinstance(left[key], str):
                assert left[key] == right[key]
            else:
                np.testing.assert_allclose(left[key], right[key], rtol=rtol, atol=1e-5, err_msg=f"{key} of {left}")


def test_two_processes_train_the_same_as_one(tiny: Settings, tmp_path: Path) -> None:
    settings = tiny(**EVERYTHING)
    train(load_config("image", overrides=settings), tmp_path / "one")
    codes, stderr = launch(tmp_path / "two", settings)
    assert codes == [0, 0], stderr
    assert "Traceback" not in stderr
    assert stderr.count("tokenizer 6/6  validation") == 1, "only the first process logs"
    assert json.loads((tmp_path / "two/env.json").read_text())["processes"] == 2
    assert_same_curves(tmp_path / "one", tmp_path / "two")


SHARDED = {"training.shard": "full", "transformer.depth": 2}


def test_sharded_processes_train_the_same_as_one(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a moving average, pictures and validation batches that the processes cannot share evenly."""
    more = {"training.transformer.ema": 0.9, "training.transformer.samples_every": 4}
    more["training.transformer.checkpoint_activations"] = True
    settings = tiny(**{**EVERYTHING, **SHARDED, **more})
    monkeypatch.setattr(tokenizer_stage.validation_batches, "__defaults__", (12,))  # three batches
    train(load_config("image", overrides=settings), tmp_path / "one")
    codes, stderr = launch(tmp_path / "two", settings, validation=12)
    assert codes == [0, 0], stderr
    assert "Traceback" not in stderr
    assert_same_curves(tmp_path / "one", tmp_path / "two")
    pictures = [sorted(file.name for file in (tmp_path / run / "samples").iterdir()) for run in ("one", "two")]
    assert pictures[0] == pictures[1] and any(name.startswith("transformer-00000004") for name in pictures[0])
    one, two = (load_file(tmp_path / run / "transformer/model.safetensors") for run in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_fifty_steps_of_both_stages(tiny: Settings, tmp_path: Path) -> None:
    numbers = {"steps": 50, "validate_every": 25, "checkpoint_every": 25}
    longer = {
        f"training.{stage}.{key}": number for stage in ("tokenizer", "transformer") for key, number in numbers.items()
    }
    settings = tiny(**{**SHARDED, **longer})
    train(load_config("image", overrides=settings), tmp_path / "one")
    codes, stderr = launch(tmp_path / "two", settings)
    assert codes == [0, 0], stderr
    assert_same_curves(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_sharded_runs_continue_on_another_number_of_processes(tiny: Settings, tmp_path: Path) -> None:
    settings, run = tiny(**SHARDED), tmp_path / "run"
    train(load_config("image", overrides=settings), tmp_path / "whole")
    for processes, step in ((2, 1), (1, 3)):
        codes, stderr = launch(run, ["--resume", "auto", *settings], ("transformer", step), processes)
        assert codes == [143] * processes, stderr
        assert f"transformer saved at step {step + 1}" in stderr
    codes, stderr = launch(run, ["--resume", "auto", *settings])
    assert codes == [0, 0], stderr
    assert_same_curves(tmp_path / "whole", run)


@pytest.mark.slow
def test_groups_of_two_among_four(tiny: Settings, tmp_path: Path) -> None:
    settings = tiny(**{**SHARDED, "training.shard": 2})
    train(load_config("image", overrides=[*settings, "training.shard=none"]), tmp_path / "one")
    codes, stderr = launch(tmp_path / "four", settings, processes=4)
    assert codes == [0] * 4, stderr
    assert_same_curves(tmp_path / "one", tmp_path / "four")


@pytest.mark.parametrize(("shard", "processes", "fits"), [(3, 4, False), (8, 4, False), (2, 4, True), (1, 3, True)])
def test_groups_must_divide_the_processes(shard: int, processes: int, fits: bool) -> None:
    if fits:
        assert group_size(shard, processes) == shard
        return
    message = f"training.shard={shard} does not divide the number of processes, 4: set none, full, or one of 1, 2, 4"
    with pytest.raises(ConfigError, match=message):
        group_size(shard, processes)
    assert (group_size("none", processes), group_size("full", processes)) == (1, processes)


def test_an_old_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch.distributed.fsdp.FSDPModule.set_reduce_scatter_unused_params")
    with pytest.raises(ConfigError, match=r"training\.shard needs a newer torch than .*: update it, or"):
        group_size("full", 2)
    assert group_size("none", 2) == 1


def test_one_process_continues_where_two_stopped(tiny: Settings, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    codes, stderr = launch(run, tiny(), stop=("transformer", 2))
    assert codes == [143, 143], stderr
    assert stderr.count("interrupted: transformer saved at step 3; continue with --resume auto\n") == 1
    train(load_config("image", overrides=tiny()), run, resume="auto")
    assert_same_curves(tiny_run, run)
    for stage in ("tokenizer", "transformer"):
        one, other = (load_file(folder / stage / "model.safetensors") for folder in (tiny_run, run))
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=1e-3, atol=1e-4)


def test_errors_are_reported_once(tiny: Settings, tiny_run: Path, tmp_path: Path) -> None:
    codes, stderr = launch(tiny_run, tiny())
    assert sorted(codes) == [1, 2]
    assert stderr.count("error: ") == 1 and "exists: continue it with --resume auto" in stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [["-m", "nextscale_cli.main"], [str(Path(sys.executable).parent / "nextscale")]])
def test_torchrun(tiny: Settings, tiny_run: Path, tmp_path: Path, how: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *how]
    done = subprocess.run([*command, "train", "--out", str(tmp_path / "run"), *tiny()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_curves(tiny_run, tmp_path / "run")
