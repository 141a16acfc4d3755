"""One process at a time writes a run folder."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nextscale.config.run import load_config
from nextscale.errors import ConfigError, NextscaleWarning, TrainingError
from nextscale.storage.lock import RunLock
from nextscale.training.run import train
from nextscale.training.tokenize import tokenize

Settings = Callable[..., list[str]]

HOLD = """
import sys, time
from pathlib import Path
from nextscale.storage.lock import RunLock
with RunLock(Path(sys.argv[1]), "trained") as lock:
    lock.acquire()
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def another_process_holds(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_process_gets_one_line_and_changes_nothing(tiny: Settings, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "transformer/model.safetensors").unlink()
    config = load_config("image", overrides=tiny())
    with another_process_holds(run) as holder:
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
        said = rf"^{run} is being trained by process {holder.pid} on \S+: wait until it has ended, or stop it first$"
        for attempt in (
            lambda: train(config, run, resume="auto"),
            lambda: train(config, run, resume=str(run / "checkpoints/transformer/step-00000004")),
            lambda: tokenize(run),
        ):
            with pytest.raises(TrainingError, match=said):
                attempt()
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert (run / ".lock").exists(), "a killed process leaves the file behind, but not the lock"
    train(config, run, resume="auto")
    assert (run / "transformer/model.safetensors").exists() and not (run / ".lock").exists()


def test_two_that_start_the_same_new_run(tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one begins after this one saw that there is no such run, and before this one writes."""
    from nextscale.training import run as module

    real, folder = module.check_run, tmp_path / "run"

    def meanwhile(*arguments: Any) -> None:
        real(*arguments)
        folder.mkdir()
        (folder / "config.yaml").write_text("theirs")

    monkeypatch.setattr(module, "check_run", meanwhile)
    with pytest.raises(ConfigError, match="exists: continue it with --resume auto"):
        train(load_config("image", overrides=tiny()), folder)
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    assert (folder / "config.yaml").read_text() == "theirs"


def test_the_lock_is_free_again_after_errors(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), RunLock(tmp_path, "trained") as lock:
            lock.acquire()
            lock.acquire()
            assert (tmp_path / ".lock").exists()
            raise KeyError
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b'{"pid": "x"}', b"\xff" * 5000, b"[1]"])
def test_a_lock_file_of_others(tmp_path: Path, content: bytes) -> None:
    """It is free, whatever a killed process left in it; held by others, it is described as well as it can be."""
    path = tmp_path / ".lock"
    path.write_bytes(content)
    with RunLock(tmp_path, "trained") as lock:
        lock.acquire()
    path.write_bytes(content)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TrainingError, match="is being trained by another process"), RunLock(tmp_path, "x") as lock:
            lock.acquire()
    assert path.read_bytes() == content


def test_a_holder_that_leaves_while_another_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that the other one opened was removed before it got its lock: it must lock the new file instead."""
    real, first = fcntl.flock, []

    def flock(file: int, how: int) -> None:
        if not first:
            first.append(file)
            (tmp_path / ".lock").unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunLock(tmp_path, "trained") as lock:
        lock.acquire()
        with pytest.raises(TrainingError), RunLock(tmp_path, "trained") as other:
            other.acquire()


def test_where_nothing_can_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(number: int) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            raise OSError(number, os.strerror(number))

        return call

    with monkeypatch.context() as patch:
        patch.setattr("nextscale.storage.lock.os.open", fails(errno.EROFS))
        with warnings.catch_warnings(), RunLock(tmp_path, "trained") as lock:
            warnings.simplefilter("error")
            lock.acquire()
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOLCK))
    with pytest.warns(NextscaleWarning, match="cannot be locked"), RunLock(tmp_path, "trained") as lock:
        lock.acquire()
