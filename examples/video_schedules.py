"""Compares schedules and attention patterns for video: each transformer trains for the same time.

    python examples/video_schedules.py [MINUTES] [FOLDER]

Trains one tokenizer per schedule (the presets ``moving-digits`` and ``moving-digits-clips``), unless FOLDER
(default: runs/schedules) already holds it. Then trains one transformer per attention pattern: ``full``, ``markov`` and,
for clips, ``before``, the matrix with which a clip sees itself and the previous clip. Each transformer trains for
MINUTES (default: 5) on cached tokens. All of this uses only settings that could be in a file.

Prints one row per transformer: tokens per clip, parameters, milliseconds per training step, the number of steps and the
minutes they took, seconds to draw 16 clips, and validation loss in nats per token and per clip. A pilot of 100 steps
sets the number of steps. If the time is then off by a tenth or more, as on a busy machine, the transformer is
trained again.

Different schedules have different tokens, so their losses are not comparable: only within one schedule does the loss
show which pattern predicts better.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import nextscale
from nextscale.config.run import load_config
from nextscale.storage.models import has
from nextscale.training.run import train

PILOT = 100
"""Number of steps on which the time per step is first measured."""
ATTEMPTS, WITHIN = 4, 0.1
"""Maximum number of trainings, pilot included, until one takes the requested time to within this share of it."""
PRESETS = {"joint": "moving-digits", "clips": "moving-digits-clips"}


def before(scales: int, segments: int) -> str:
    """The matrix with which a segment's scales see themselves, coarser ones and all of the previous segment."""
    rows = [
        [int(j <= k and k // scales - j // scales <= 1) for j in range(scales * segments)]
        for k in range(scales * segments)
    ]
    return json.dumps(rows)


def measure(run: Path) -> tuple[float, float]:
    """Milliseconds per step, and the lowest validation loss."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["stage"] == "transformer"]
    speed = [line["tokens_per_second"] for line in lines if line["kind"] == "train"][-1]
    config = load_config(file=run / "config.yaml")
    tokens = nextscale.load(run).transformer.schedule.length * config.training.transformer.batch_size
    return 1000 * tokens / speed, min(line["loss"] for line in lines if line["kind"] == "validation")


def stage_two(preset: str, pattern: str, tokenizer: Path, out: Path, steps: int) -> None:
    settings = {
        "transformer.attention": pattern,
        "training.init": tokenizer,
        "training.transformer.steps": steps,
        "training.transformer.validate_every": max(1, steps // 10),
        "training.transformer.cache_passes": 6,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    train(load_config("video", preset, overrides=overrides), out, "transformer", resume="auto")


def compare(schedule: str, name: str, pattern: str, minutes: float, folder: Path) -> list[str]:
    """Train one transformer and return its row of the table."""
    steps, took = PILOT, 0.0
    for _ in range(ATTEMPTS):
        if took:
            steps = max(1, round(steps * minutes / took))
        run = folder / f"{schedule}-{name}-{steps}"
        stage_two(PRESETS[schedule], pattern, folder / schedule, run, steps)
        step, loss = measure(run)
        took = step * steps / 60_000
        if abs(took / minutes - 1) < WITHIN:
            break
    model = nextscale.load(run)
    began = time.perf_counter()
    model.generate(16)
    drawn, tokens = time.perf_counter() - began, model.transformer.schedule.length
    weights = sum(parameter.numel() for parameter in model.transformer.parameters())
    clip = loss * tokens
    costs = [f"{tokens}", f"{weights:,}", f"{step:.0f}", f"{steps}", f"{took:.1f}", f"{drawn:.1f}"]
    return [schedule, name, *costs, f"{loss:.3f}", f"{clip:.1f}"]


def main(minutes: float, folder: Path) -> None:
    rows = [["schedule", "attention", "tokens", "weights", "ms/step", "steps", "minutes", "s/16", "loss", "clip"]]
    for schedule, preset in PRESETS.items():
        if not has(folder / schedule, "tokenizer"):
            train(load_config("video", preset), folder / schedule, "tokenizer", resume="auto")
        patterns = {"full": "full", "markov": "markov"} | ({"before": before(4, 2)} if schedule == "clips" else {})
        rows += [compare(schedule, name, pattern, minutes, folder) for name, pattern in patterns.items()]
    for row in rows:
        print("".join(f"{cell:>11}" for cell in row))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0, Path(sys.argv[2] if len(sys.argv) > 2 else "runs/schedules"))
