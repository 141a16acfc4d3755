"""Compare kinds of model that were trained alike: quality, likelihood, training, and what a sample costs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nextscale.bench.cost import run_costs
from nextscale.bench.fair import Comparison
from nextscale.bench.kinds import Kind
from nextscale.config.run import load_run_config, parse_options
from nextscale.errors import CheckpointError, ConfigError
from nextscale.evaluation import eval_file, evaluate, mean_and_spread
from nextscale.storage.files import read_json, write_json_atomic
from nextscale.storage.lock import RunLock

RESULTS = "results.json"


@dataclass(frozen=True)
class Measurement:
    """How runs are measured.

    Attributes:
        samples: drawn per guidance value for the modality's own evaluation; at least 2.
        guidance: values to draw at; None is 0 and the preset's own.
        batch_size: the larger of the batches whose time per sample is measured.
        options: ``eval.KEY=VALUE``, as ``nextscale eval`` takes them.
    """

    samples: int = 1000
    guidance: tuple[float, ...] | None = None
    batch_size: int = 64
    options: tuple[str, ...] = ()


def compare(comparison: Comparison, seeds: int, measurement: Measurement) -> dict[str, Any]:
    """Train what is not trained yet, measure it, and write ``results.json`` after every kind.

    All kinds are trained with one seed before the next seed, so that an interrupted comparison is complete for the
    seeds that it got to. Costs are measured last, one kind after another, so that their ratios come from one time.

    Returns:
        what the file holds: what was compared and measured, and ``kinds``. Of each kind: its ``settings``, the
        ``tokenizer`` (kinds with the same one have the same tokens, unless they read them in another order), the
        ``seeds``; ``training`` (optimizer steps, minutes, operations), ``reconstruction``, ``validation``, ``samples``
        (by guidance), each averaged over seeds beside its standard deviation ``KEY_std``; and ``costs`` of the first
        seed's run (``run_costs``).

    Raises:
        ConfigError, DataError, CheckpointError, TrainingError: as training and evaluation do.
        Interrupted: after SIGINT or SIGTERM, once a checkpoint is saved. The same call goes on.
    """
    base = comparison.base.configure()
    parse_options(base.modality, measurement.options)
    guidance = measurement.guidance or tuple(sorted({0.0, base.sampling.guidance}))
    results: dict[str, Any] = {"compared": comparison.record, "measured": {**asdict(measurement), "guidance": guidance}}

    def measure(kind: Kind, run: Path) -> dict[str, Any]:
        return _measured(comparison, run, guidance, measurement)

    with training(comparison, seeds, results, measure):
        for kind in comparison.kinds:
            comparison.log(f"{kind.name}: time per sample")
            row = results["kinds"][kind.name]
            row["costs"] = _costs(comparison.run_of(kind, 0), list(row["samples"]), measurement, base.training.device)
            row["training"]["flops"] = row["training"]["steps"] * row["costs"]["train_step_flops"]
        write_json_atomic(comparison.folder / RESULTS, results)
    return results


@contextmanager
def training(
    comparison: Comparison, seeds: int, results: dict[str, Any], measure: Callable[[Kind, Path], dict[str, Any]]
) -> Iterator[None]:
    """Train and measure all kinds, and add them to ``results`` (``kinds``), which are written after every kind. The
    block then has the folder for itself.

    Raises:
        ConfigError: ``seeds`` is below 1.
        TrainingError: another process works in the folder.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds} is wrong: should be at least 1")
    rounds: dict[str, list[dict[str, Any]]] = {kind.name: [] for kind in comparison.kinds}
    comparison.save_record()
    with RunLock(comparison.folder, "compared") as lock:
        lock.acquire()
        for number in range(seeds):
            for kind in comparison.kinds:
                rounds[kind.name].append(measure(kind, comparison.train(kind, number)))
                results["kinds"] = {each.name: _kind(comparison, each, rounds[each.name]) for each in comparison.kinds}
                write_json_atomic(comparison.folder / RESULTS, results)
        yield


def _measured(comparison: Comparison, run: Path, guidance: Sequence[float], measurement: Measurement) -> dict[str, Any]:
    """What ``nextscale eval`` measures of a run, and how it was trained. The run's ``eval.json`` is used if it fits."""
    wanted = {
        "samples": measurement.samples,
        "guidance": list(guidance),
        "seed": 0,
        "repeats": 1,
        "sampling": {},
        "options": list(measurement.options),
    }
    found = stored(eval_file(run))
    told = found.get("measured", {})
    if found.get("incomplete") or {key: told.get(key) for key in wanted} != wanted:
        comparison.log(f"{run.name}: measuring")
        found = evaluate(
            run, measurement.samples, guidance, options=measurement.options,
            device=comparison.base.configure().training.device, cache=comparison.folder / "eval-cache",
        )  # fmt: skip
    steps = load_run_config(run).training.transformer.steps  # as the clock has recorded them
    parts = {name: found.get(name, {}) for name in ("reconstruction", "validation", "samples", "model")}
    return {"training": {"steps": steps, "minutes": comparison.minutes_of(run)}, **parts}


def stored(path: Path) -> dict[str, Any]:
    """The measurements in a file, which say under ``measured`` how they were made; {} if there are none."""
    try:
        found = read_json(path)
    except CheckpointError:  # missing or damaged: measured again
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("measured"), dict) else {}


def _kind(comparison: Comparison, kind: Kind, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    # The spread of a single number is unknown, not 0.
    measured = {} if not rounds else mean_and_spread(rounds) if len(rounds) > 1 else dict(rounds[0])
    return {
        "settings": list(kind.settings),
        "tokenizer": comparison.tokenizer_of(kind).name,
        "seeds": [comparison.seed + number for number in range(len(rounds))],
        **measured,
    }


def _costs(run: Path, guidance: Sequence[str], measurement: Measurement, device: str) -> dict[str, Any]:
    # In a process of its own: memory that another kind has left over would count towards this one.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        values = [float(value) for value in guidance]
        return process.submit(run_costs, run, values, measurement.batch_size, device).result()


def training_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per kind: how it was trained, and the likelihood of its tokens on held-out samples."""
    return [
        {
            "kind": name,
            "seeds": len(row["seeds"]),
            "tokenizer": row["tokenizer"],
            "steps": spread(row["training"], "steps"),
            "minutes": spread(row["training"], "minutes"),
            "training_petaflop": row["training"]["flops"] / 1e15,
            "nats_per_token": spread(row["validation"], "loss"),
            "nats_per_sample": spread(row["validation"], "nats_per_sample"),
        }
        for name, row in results["kinds"].items()
    ]


def quality_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per kind and guidance, with every number that the modality measures; then what real samples score."""
    rows: list[dict[str, Any]] = []
    floors: dict[str, Any] = {"kind": "real samples", "guidance": ""}
    for name, row in results["kinds"].items():
        for guidance, values in row["samples"].items():
            keys = measures(values)
            rows.append({"kind": name, "guidance": guidance, **{key: spread(values, key) for key in keys}})
            floors |= {key: values[f"{key}_floor"] for key in keys if values.get(f"{key}_floor") is not None}
    return [*rows, floors] if len(floors) > 2 else rows


def cost_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per kind and guidance; ``times_first`` is how many times longer a sample takes than one of the first kind
    at the same guidance."""
    rows = []
    size = results["measured"]["batch_size"]
    large = f"ms_batch_{size}"
    first = next(iter(results["kinds"].values()))["costs"]["sampling"]
    for name, row in results["kinds"].items():
        for guidance, cost in row["costs"]["sampling"].items():
            rows.append(
                {
                    "kind": name,
                    "guidance": guidance,
                    "passes": cost["passes"],
                    "ms_batch_1": cost["ms_batch_1"],
                    "times_first_at_1": cost["ms_batch_1"] / first[guidance]["ms_batch_1"],
                    large: cost[large],
                    f"times_first_at_{size}": cost[large] / first[guidance][large],
                    "sample_gigaflop": cost["sample_flops"] / 1e9,
                    "peak_mib": cost["peak_mib"],
                    "weights": row["costs"]["weights"],
                }
            )
    return rows


def measures(values: Mapping[str, Any]) -> list[str]:
    """The names of numbers, without their floors and spreads."""
    return [
        key for key, value in values.items() if isinstance(value, int | float) and not key.endswith(("_floor", "_std"))
    ]


def spread(values: Mapping[str, Any], key: str) -> Any:
    """A number; with more than one seed, a text of its mean and standard deviation."""
    value, std = values.get(key), values.get(f"{key}_std")
    return value if value is None or std is None else f"{value:.4g} ± {std:.2g}"
