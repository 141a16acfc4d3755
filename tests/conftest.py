"""A run that trains in about a second: real digits (a small part of them), and models of a few thousand weights."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# pytest's importlib mode adds no folder to the path, so test files would not find their shared helpers.
sys.path.insert(0, str(Path(__file__).parent))

TINY = {
    "preset": "digits",
    "tokenizer.width": 8,
    "tokenizer.channels": 8,
    "tokenizer.quantizer.codes": 32,
    "tokenizer.quantizer.revive_every": 3,
    "transformer.depth": 1,
    "transformer.width": 32,
    "transformer.heads": 2,
    "training.device": "cpu",
} | {
    f"training.{stage}.{key}": value
    for stage in ("tokenizer", "transformer")
    for key, value in {
        "steps": 6, "batch_size": 8, "log_every": 1, "validate_every": 2, "checkpoint_every": 2, "samples_every": 0,
        "precision": "fp32",  # auto depends on how fast bf16 is here; compared runs must not
    }.items()
}  # fmt: skip

Settings = Callable[..., list[str]]


@pytest.fixture(scope="session")
def digits_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 labelled digits for training and 32 for validation."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, x_train=images[:96], y_train=labels[:96], x_val=images[96:128], y_val=labels[96:128])
    return path


@pytest.fixture(scope="session")
def tiny(digits_file: Path) -> Settings:
    """The ``key=value`` settings of a tiny run, with changes: ``tiny(seed=3, **{"data.crop": 6})``."""

    def settings(**changes: object) -> list[str]:
        values: dict[str, object] = {**TINY, "data.source": digits_file, **changes}
        return [f"{key}={value}" for key, value in values.items()]

    return settings


@pytest.fixture(scope="session")
def tiny_run(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained tiny run. Tests must not write to it."""
    from nextscale.config.run import load_config
    from nextscale.training.run import train

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(load_config("image", overrides=tiny()), folder)
    return folder


@pytest.fixture(scope="module")
def forked_pools() -> Iterator[None]:
    """Process pools fork their processes (``forks``) where the code would start interpreters, which takes seconds."""
    import forks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method=None: forks.CONTEXT)
        yield


@pytest.fixture
def time_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a time budget, at most three seconds are left when training begins, and no budget is refused as too short."""
    from nextscale.training import plan
    from nextscale.training.clock import RunClock

    begin = RunClock.__init__

    def late(self: RunClock, *arguments: Any) -> None:
        begin(self, *arguments)
        if self.budget is not None:
            self.before += max(0.0, self.left() - 3)

    monkeypatch.setattr(RunClock, "__init__", late)
    monkeypatch.setattr(plan, "LEFT", float("-inf"))
