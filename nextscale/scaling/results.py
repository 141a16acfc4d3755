"""What a finished run of a ladder came to, and how it is read back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextscale.config.run import load_run_config
from nextscale.config.sections import RunConfig
from nextscale.errors import CheckpointError, DataError
from nextscale.storage.files import parse_json, read_json
from nextscale.training.resume import changed

RECORD = "scaling.json"
METRICS = {
    "mean loss": "mean over all tokens, nats per token",
    "last-scale loss": "mean over the tokens of the last scale, nats per token",
    "mean error": "share of tokens that are not the likeliest one",
    "last-scale error": "the same in the last scale",
}
OWN = (
    "transformer.width", "transformer.depth", "transformer.heads", "training.threads", "training.device",
    "training.init", *(f"training.transformer.{key}" for key in ("lr", "steps", "validate_every", "checkpoint_every")),
)  # fmt: skip
"""Settings in which the runs of one ladder differ."""


@dataclass(frozen=True)
class Result:
    """A finished run: its size, what it was trained on, and its validation losses at the end of its schedule."""

    name: str
    width: int
    depth: int
    heads: int
    multiple: float
    parameters: int
    blocks: int
    tokens: int
    flops: float
    losses: dict[str, float]
    """By the names of ``METRICS``."""


def final_losses(run: Path) -> dict[str, Any]:
    """The losses of the last validation, which is at the last step of the run's schedule.

    The last, and not the lowest: the lowest of several noisy values is too low, and more so where there are more.

    Raises:
        CheckpointError: the run has no such validation, or it is damaged.
    """
    path = run / "metrics.jsonl"
    steps = load_run_config(run).training.transformer.steps
    found: dict[str, Any] = {}
    for raw in path.read_bytes().splitlines() if path.exists() else []:
        try:
            line = parse_json(raw)
            wanted = (line["stage"], line["kind"], line["step"]) == ("transformer", "validation", steps)
        except (ValueError, KeyError, TypeError):
            continue
        found = line if wanted else found
    names = [key.removeprefix("loss/") for key in found if key.startswith("loss/")]
    try:
        losses = {
            "mean loss": found["loss"],
            "last-scale loss": found[f"loss/{names[-1]}"],
            "mean error": 1 - found["accuracy"],
            "last-scale error": 1 - found[f"accuracy/{names[-1]}"],
        }
    except (KeyError, IndexError, TypeError):
        raise CheckpointError(f"{path} lacks the validation of step {steps}, the last of the run") from None
    return {"step": steps, "losses": losses, "loss by scale": {name: found[f"loss/{name}"] for name in names}}


def read_results(folder: Path) -> tuple[list[Result], list[str]]:
    """The finished runs of a ladder, from small to large, and the names of those that are not finished.

    Raises:
        DataError: there is no ladder, or its runs are of different data, presets or settings.
        CheckpointError, ConfigError: a file is damaged.
    """
    runs = sorted(path.parent for path in (folder / "runs").glob("*/config.yaml"))
    if not runs:
        raise DataError(f"{folder} holds no ladder: train one with nextscale scaling run --out {folder}")
    done = [run for run in runs if (run / RECORD).exists()]
    first: RunConfig | None = None
    for run in done:
        config = load_run_config(run)
        first = first or config
        different = [change for change in changed(first, config) if change[0] not in OWN]
        if different:
            key, before, now = different[0]
            raise DataError(
                f"{folder} holds runs of different ladders: {key} is {before} in {done[0].name}, and {now} in "
                f"{run.name}: move one of them elsewhere"
            )
    results = [_read(run) for run in done]
    return sorted(results, key=lambda one: (one.blocks, one.tokens)), [run.name for run in runs if run not in done]


def _read(run: Path) -> Result:
    path = run / RECORD
    found = read_json(path)
    try:
        numbers = {key: found[key] for key in ("width", "depth", "heads", "parameters", "blocks", "tokens")}
        losses = {name: float(found["losses"][name]) for name in METRICS}
        result = Result(
            run.name, multiple=float(found["multiple"]), flops=float(found["flops"]), losses=losses,
            **{key: int(value) for key, value in numbers.items()},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__} {error}; remove it and run again") from None
    sizes = (result.blocks, result.parameters, result.tokens, result.flops)
    if min(sizes) <= 0 or not all(map(math.isfinite, (*sizes, *losses.values()))):
        raise CheckpointError(f"{path} is damaged: sizes must be above 0; remove it and run the ladder again")
    return result
