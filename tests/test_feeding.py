"""Batches that worker processes read are those that training reads by itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.config.run import load_config
from nextscale.data import Batch
from nextscale.errors import DataError, TrainingError
from nextscale.training.feeding import Feed
from nextscale.training.run import train
from nextscale.training.step import Stepper

Settings = Callable[..., list[str]]


def read(step: int) -> list[Batch]:
    return [Batch(torch.full((2,), step), {"label": torch.arange(part, part + 2)}) for part in range(2)]


@settings(max_examples=6, deadline=None)
@given(first=st.integers(0, 10**9), workers=st.integers(0, 2), count=st.integers(1, 9))
def test_steps_come_in_order(first: int, workers: int, count: int) -> None:
    with Feed(read, first, workers) as feed:
        got = [feed.next() for _ in range(count)]
    for step, batches in enumerate(got, first):
        for batch, expected in zip(batches, read(step), strict=True):
            assert torch.equal(batch.samples, expected.samples)
            assert torch.equal(batch.conditions["label"], expected.conditions["label"])
    assert feed.waited >= 0


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_are_those_of_reading(workers: int) -> None:
    def failing(step: int) -> list[Batch]:
        if step == 3:
            raise DataError("picture 7 is damaged")
        return read(step)

    with Feed(failing, 1, workers) as feed:
        feed.next(), feed.next()
        with pytest.raises(DataError, match=r"^picture 7 is damaged$"):
            feed.next()


def test_a_killed_worker_is_one_line() -> None:
    parent = os.getpid()

    def dying(step: int) -> list[Batch]:
        if step == 1 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(step)

    with Feed(dying, 0, 1) as feed, pytest.raises(TrainingError, match="a process that reads data has ended") as caught:
        for _ in range(2):
            feed.next()
    assert "training.workers" in str(caught.value) and "\n" not in str(caught.value)


def test_no_process_is_left(tmp_path: Path) -> None:
    def noting(step: int) -> list[Batch]:
        (tmp_path / str(os.getpid())).touch()
        return read(step)

    with Feed(noting, 0, 2) as feed:
        feed.next(), feed.next()
        workers = [int(path.name) for path in tmp_path.iterdir()]
        assert workers and os.getpid() not in workers
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_training_with_workers_is_the_same(tiny: Settings, tmp_path: Path) -> None:
    """Bit for bit, with augmentation, in both stages, and when it is resumed with another number."""
    changes: dict[str, Any] = {"data.crop": 7, "data.flip": True, "training.transformer.cache": False}
    for name, first, then in (("none", 0, 0), ("some", 2, 1)):
        for stage, workers in (("tokenizer", first), ("transformer", then)):
            overrides = tiny(**changes, **{"training.workers": workers})
            train(load_config("image", overrides=overrides), tmp_path / name, stage, "auto")
    from safetensors.torch import load_file

    for stage in ("tokenizer", "transformer"):
        left, right = (load_file(tmp_path / run / stage / "model.safetensors") for run in ("none", "some"))
        assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("not enough memory")])
def test_too_little_memory_names_what_to_lower(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object) -> dict[str, float]:
        raise error

    monkeypatch.setattr(Stepper, "_backward", full)
    with pytest.raises(TrainingError, match=r"cpu has too little memory for 8 samples at a time at step 0") as caught:
        train(load_config("image", overrides=tiny()), tmp_path / "run")
    assert "set training.tokenizer.accumulate=2" in str(caught.value) and "batch_size than 8" in str(caught.value)
    assert "checkpoint_activations" not in str(caught.value)
