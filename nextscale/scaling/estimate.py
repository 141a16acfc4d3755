"""What a ladder would train, and how long that would take on this machine: a few steps of every size are timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nextscale import plugins
from nextscale.config.sections import RunConfig
from nextscale.device import cpu_threads, pick_device
from nextscale.scaling.ladder import Rung, Size
from nextscale.training.pilot import Pilot, Timing
from nextscale.training.plan import OVERHEAD


def estimate(
    base: RunConfig, rungs: Sequence[Rung], processes: int = 1, trains_tokenizer: bool = True
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One row per run, and the minutes of the whole ladder.

    ``6 N D`` counts adaLN, whose weights are used once per sample, as if it worked on every token, and leaves out
    attention and the head. ``counted`` does not.

    Raises:
        ConfigError, DataError: as ``build_ladder``.
    """
    modality = plugins.modality(base.modality)
    data = modality.open_data(base.data)
    pilot = Pilot(modality, data, pick_device(base.training.device))
    timings: dict[Size, Timing] = {}
    rows = []
    for rung in rungs:
        if rung.size not in timings:
            with cpu_threads(base.training.threads):
                timings[rung.size] = pilot.time(rung.config)
        seconds = timings[rung.size].transformer * rung.steps / (1 - OVERHEAD)
        rows.append({
            "run": rung.name, "parameters": rung.parameters, "N": rung.blocks, "D": rung.tokens,
            "D_per_N": rung.tokens / rung.blocks, "steps": rung.steps, "lr": rung.config.training.transformer.lr,
            "6 N D": f"{6.0 * rung.blocks * rung.tokens:.2e}", "counted": f"{rung.flops:.2e}", "minutes": seconds / 60,
        })  # fmt: skip
    one = next(iter(timings.values()))
    stages = base.training
    first = one.tokenizer * stages.tokenizer.steps / (1 - OVERHEAD) / 60 if trains_tokenizer else 0.0
    caching = one.encode * (len(data.train) * stages.transformer.cache_passes + len(data.validation)) / 60
    runs = sum(row["minutes"] for row in rows)
    smallest, largest = min(rung.blocks for rung in rungs), max(rung.blocks for rung in rungs)
    return rows, {
        "tokens per sample": one.tokens,
        "largest N over smallest": round(largest / smallest, 1),
        "minutes of the tokenizer": round(first, 1),
        "minutes to cache tokens": round(caching, 1),
        "minutes of the runs": round(runs, 1),
        f"minutes in all, with {processes} {'process' if processes == 1 else 'processes'}": round(
            first + caching + max(runs / processes, max(row["minutes"] for row in rows)), 1
        ),
    }
