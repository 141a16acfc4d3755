"""What a run's folder holds that is worth showing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nextscale.config.run import load_run_config
from nextscale.config.sections import RunConfig
from nextscale.errors import CheckpointError
from nextscale.report.pictures import SUFFIXES, find_picture
from nextscale.storage.files import parse_json, read_json
from nextscale.storage.models import has, stored_config

STAGES = ("tokenizer", "transformer")
SCORER = "scorer"
"""A stage that a run may have."""
DRAWN = re.compile(rf"({'|'.join([*STAGES, SCORER])})-([0-9]{{8,}})")
"""The name, without its suffix, of a picture that a stage draws while it trains (``training.STAGE.samples_every``)."""
LARGEST = 1e30
"""A larger loss is not drawn: nothing else would be seen."""

Points = list[tuple[float, float]]


@dataclass
class StageLosses:
    """The losses of one stage by step: in training, on the validation split, and there by scale."""

    train: Points = field(default_factory=list)
    validation: Points = field(default_factory=list)
    by_scale: dict[str, Points] = field(default_factory=dict)


@dataclass(frozen=True)
class RunContents:
    """A run as its folder tells it. ``data`` is None for runs that say nothing of their data (0.1.0, before stage 1);
    ``results`` maps the names of what ``nextscale eval`` wrote to its contents."""

    folder: Path
    config: RunConfig
    data: dict[str, Any] | None
    environment: dict[str, Any]
    trained: dict[str, bool]
    losses: dict[str, StageLosses]
    drawn: dict[str, list[tuple[int, Path]]]
    reconstructions: Path | None
    samples: Path | None
    results: dict[str, dict[str, Any]]


def read_run(run: Path) -> RunContents:
    """Read all that a report shows; no weights, and no data.

    Raises:
        CheckpointError, ConfigError, PluginError: there is no such run, or one of its files is damaged.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run} is not a run folder: there is no such folder")
    config = load_run_config(run)
    pictures = run / "samples"
    return RunContents(
        folder=run,
        config=config,
        data=_data(run),
        environment=_optional(run / "env.json") or {},
        trained={stage: has(run, stage) for stage in STAGES},
        losses=read_losses(run / "metrics.jsonl"),
        drawn={stage: list(_drawn(pictures, stage)) for stage in (*STAGES, SCORER)},
        reconstructions=find_picture(pictures, "reconstructions"),
        samples=find_picture(pictures, "samples"),
        results={name: found for name in ("eval", "eval-validation") if (found := _optional(run / f"{name}.json"))},
    )


def differences(config: BaseModel, default: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Key, value and default of every setting that differs from that of ``default``."""
    for name in type(config).model_fields:
        value, usual = getattr(config, name), getattr(default, name)
        if isinstance(value, BaseModel) and type(usual) is type(value):
            yield from differences(value, usual, f"{prefix}{name}.")
        elif value != usual:
            yield f"{prefix}{name}", value, usual


def read_losses(path: Path) -> dict[str, StageLosses]:
    """The losses in ``metrics.jsonl``, each stage in the order of its steps. Broken lines are left out: a process that
    was killed leaves one.

    Raises:
        CheckpointError: the file holds nothing else.
    """
    losses = {stage: StageLosses() for stage in (*STAGES, SCORER)}
    if not path.exists():
        return losses
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    sound = 0
    for raw in lines:
        try:
            line = parse_json(raw)
            stage, step, kind = losses[line["stage"]], int(line["step"]), line["kind"]
        except (ValueError, KeyError, TypeError):
            continue
        sound += 1
        if kind == "train":
            _append(stage.train, step, line.get("loss"))
        elif kind == "validation":
            _append(stage.validation, step, line.get("loss"))
            for key in line:
                if key.startswith("loss/"):
                    _append(stage.by_scale.setdefault(key.removeprefix("loss/"), []), step, line[key])
    if lines and not sound:
        raise CheckpointError(f"{path} is damaged: none of its {len(lines):,} lines is a record of training")
    return losses


def _append(points: Points, step: int, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and math.isfinite(value) and abs(value) < LARGEST and (not points or step > points[-1][0]):
        points.append((step, value))


def _data(run: Path) -> dict[str, Any] | None:
    found = _optional(run / "data.json")
    if found is not None or not has(run, "tokenizer"):
        return found
    described = {"description": stored_config(run, "tokenizer").get("description") or {}}
    return described | (
        {"conditions": stored_config(run, "transformer").get("conditions")} if has(run, "transformer") else {}
    )


def _optional(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file; None if there is no file."""
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} is damaged: it should hold a mapping, not {json.dumps(found)[:60]}")
    return dict(found)


def _drawn(folder: Path, stage: str) -> Iterator[tuple[int, Path]]:
    """Step and picture, in the order of steps."""
    stems = {path.stem for path in folder.glob(f"{stage}-*") if path.suffix in SUFFIXES and DRAWN.fullmatch(path.stem)}
    for stem in sorted(stems, key=lambda name: int(name.rpartition("-")[2])):
        path = find_picture(folder, stem)
        if path is not None:
            yield int(stem.rpartition("-")[2]), path
