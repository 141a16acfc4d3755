"""Runs that take about a second, and what is read from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from nextscale.config.run import load_config
from nextscale.training.run import train

Settings = Callable[..., list[str]]
STAGES = ("tokenizer", "transformer")


def fit(tiny: Settings, folder: Path, resume: str | None = None, stage: str = "all", **changes: Any) -> Path:
    train(load_config("image", overrides=tiny(**changes)), folder, stage, resume)
    return folder


def both(**changes: Any) -> dict[str, Any]:
    return {f"training.{stage}.{key}": value for stage in STAGES for key, value in changes.items()}


def metrics(folder: Path, stage: str, kind: str = "train") -> list[dict[str, Any]]:
    found = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if (line["stage"], line["kind"]) == (stage, kind)]


def losses(folder: Path, stage: str, kind: str = "train") -> list[float]:
    return [line["loss"] for line in metrics(folder, stage, kind)]


def weights(folder: Path, stage: str) -> dict[str, Tensor]:
    return load_file(folder / stage / "model.safetensors")


def assert_equal_weights(a: Path, b: Path, stages: tuple[str, ...] = STAGES) -> None:
    for stage in stages:
        left, right = weights(a, stage), weights(b, stage)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left), stage
