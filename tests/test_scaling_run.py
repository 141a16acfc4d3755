"""`nextscale scaling`: a ladder that is killed goes on to the same losses, and mistakes are one clear line each."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nextscale.errors import ConfigError, DataError, NextscaleError
from nextscale.scaling.ladder import Size, Tokens, build_ladder, parse_depths, parse_sizes
from nextscale.scaling.results import read_results
from nextscale.scaling.run import slurm_executor, train_ladder
from nextscale_cli.main import app

Settings = Callable[..., list[str]]
SIZES = ["--sizes", "8x1,16x1", "--tokens", "1", "--base-tokens", "4000"]


def losses(folder: Path) -> list[dict[str, float]]:
    return [run.losses for run in read_results(folder)[0]]


@pytest.mark.slow
def test_a_killed_ladder_goes_on_to_the_same_losses(tiny: Settings, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nextscale_cli.main", "scaling", "run", *tiny(**{"training.threads": 1}), *SIZES]
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, "--out", str(killed)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not list(killed.glob("runs/*/checkpoints/transformer/step-*")) and time.monotonic() < deadline:
            assert process.poll() is None, "the ladder ended before it could be killed"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(list(killed.glob("runs/*/scaling.json"))) < 2
    for folder in (killed, tmp_path / "whole"):
        subprocess.run([*command, "--out", str(folder)], check=True, stderr=subprocess.DEVNULL)
    assert losses(killed) == losses(tmp_path / "whole")
    assert not list(killed.glob("runs/*/tokens.zarr")), "all runs read the one cache"
    changed = [*command, "training.transformer.lr=0.5", "--out", str(killed)]
    done = subprocess.run(changed, capture_output=True, text=True)
    assert done.returncode == 2 and "name another folder with --out" in done.stderr and "Traceback" not in done.stderr
    # Runs of another ladder among these are refused.
    record = next(killed.glob("runs/*/config.yaml"))
    text = record.read_text().replace("preset: digits", "preset: other")
    record.write_text("".join(line for line in text.splitlines(True) if not line.startswith("# sha256")))
    with pytest.raises(DataError, match="holds runs of different ladders: preset is"):
        read_results(killed)


@pytest.mark.slow
def test_two_processes_with_a_given_tokenizer_train_what_one_does(tiny: Settings, tmp_path: Path) -> None:
    settings = [*tiny(**{"training.threads": 1}), *SIZES]
    folders = [tmp_path / "one", tmp_path / "two"]
    given = ["--tokenizer", str(folders[0] / "tokenizer"), "--processes", "2"]
    for folder, more in zip(folders, [[], given], strict=True):
        done = CliRunner().invoke(app, ["scaling", "run", *settings, *more, "--out", str(folder)])
        assert done.exit_code == 0, done.output
    assert losses(folders[0]) == losses(folders[1])
    assert not (folders[1] / "tokenizer" / "checkpoints").exists(), "the tokenizer was trained anew"


@pytest.mark.slow
def test_submitit_trains_runs_as_jobs(tiny: Settings, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="runs on a cluster need submitit")
    from nextscale.config.run import load_config

    base = load_config("image", overrides=tiny(**{"training.threads": 1}))
    rungs = build_ladder(base, [Size(8, 1, 1)], Tokens((1.0,), 2000), 0.5)
    executor = slurm_executor(tmp_path / "logs", {"timeout_min": 5, "cluster": "local"})
    train_ladder(base, rungs, tmp_path / "out", executor=executor)
    assert len(losses(tmp_path / "out")) == 1


def test_an_executor_gets_one_job_per_run(tiny: Settings, tmp_path: Path) -> None:
    """As submitit's executor would."""
    from nextscale.config.run import load_config

    submitted: list[str] = []

    class Fake:
        def submit(self, fn: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
            json.dumps(arguments[0])  # plain values, which travel to another machine
            submitted.append(arguments[1].name)
            done: Future[Any] = Future()
            done.set_result(fn(*arguments))
            return done

    base = load_config("image", overrides=tiny())
    rungs = build_ladder(base, [Size(8, 1, 1), Size(16, 1, 1)], Tokens((1.0,), 2000), 0.5)
    train_ladder(base, rungs, tmp_path / "out", executor=Fake())
    assert sorted(submitted) == ["w16-d1-h1-t1", "w8-d1-h1-t1"]
    train_ladder(base, rungs, tmp_path / "out", executor=Fake())
    assert len(submitted) == 2, "finished runs are not trained again"


def test_the_blocks_of_published_sizes(tiny: Settings) -> None:
    """73,728 d^3 weights, and 14 width^2 biases less than a thousandth beside them."""
    from nextscale.config.run import load_config

    base = load_config("image", overrides=tiny())
    for rung in build_ladder(base, parse_depths("8,16"), Tokens((1.0,), 2000), 0.0):
        assert rung.blocks == pytest.approx(73_728 * rung.size.depth**3, rel=2e-3)


def test_a_dry_run_shows_the_ladder_and_writes_nothing(tiny: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["scaling", "run", *tiny(), *SIZES, "--out", str(out), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "w8-d1-h1-t1" in done.output and "minutes in all" in done.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [("30x2x4", "even multiple of its 4 heads"), ("64", "is no size"), ("0x1", "whole numbers above 0"),
     ("64x1,64x1", "twice"), ("", "names nothing")],
)  # fmt: skip
def test_wrong_sizes_are_named(sizes: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_sizes(sizes)


def test_without_submitit_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(NextscaleError, match=r"pip install 'nextscale\[slurm\]'"):
        slurm_executor(tmp_path, {})
