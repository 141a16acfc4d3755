"""``nextscale bench growth``: all kinds on all sides, as far as time and memory allow, and the fitted exponents."""

from __future__ import annotations

import itertools
import math
import platform
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from nextscale import plugins
from nextscale.bench.growth.cost import PassCost
from nextscale.bench.growth.fits import FEWEST, fit_power_law, larger_half, predict_seconds
from nextscale.bench.growth.kinds import Kind, build_tokenizer, check_config, chosen_kinds
from nextscale.bench.growth.measure import Task, measure, on_paper, own_process
from nextscale.bench.memory import MIB, free_memory
from nextscale.config.run import load_config
from nextscale.config.sections import RunConfig
from nextscale.device import is_out_of_memory, pick_device
from nextscale.errors import ConfigError
from nextscale.meta import without_memory
from nextscale.modality import BenchCase
from nextscale.storage.files import write_json_atomic

RESULT = "growth.json"
FITTED = {"seconds": "time", "cpu_seconds": "processor time", "flops": "operations", "peak_mib": "memory"}


def bench_growth(
    modality: str,
    case: BenchCase,
    sides: Sequence[int],
    kinds: Sequence[str],
    out: Path,
    repeats: int = 3,
    batch: int = 1,
    limit: float = 60.0,
    overrides: Sequence[str] = (),
    *,
    device: str = "auto",
    log: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Draw untrained models' samples on latent grids of several sides, and fit how the cost grows.

    Drawing alone is timed, without conditions and without the decoder, which costs the same for all kinds. The
    transformer has the preset's size on every side.

    Args:
        case: the preset; its ``description`` stands in for the data, from which only the number of axes is taken.
        sides: places along each axis of the latent, increasing.
        kinds: names of ``kinds.KINDS``.
        out: ``growth.json`` is written into this folder after every row.
        repeats: timed draws, after one that is dropped.
        batch: samples drawn at once.
        limit: a row is not tried if a draw would probably take more seconds, nor is any larger side of its kind.
        overrides: ``key=value`` settings that override the preset.

    Returns:
        what ``growth.json`` holds: ``rows`` (seconds, operations, and memory measured and on paper), ``fits`` (see
        ``fits.Fit``), and ``ratios``: time and processor time of a kind over those of next-scale, by side.

    Raises:
        ConfigError: sides, kinds or settings that make no sense.
    """
    chosen = chosen_kinds(kinds)
    check_sides(sides)
    if min(repeats, batch) < 1 or not limit > 0:
        raise ConfigError("repeats and batch must be at least 1, and the limit above 0")
    where = pick_device(device)
    config = load_config(modality, case.preset, None, overrides)
    check_config(config, overrides)
    axes = _axes(config, case)
    result: dict[str, Any] = {
        "modality": modality,
        "preset": case.preset,
        "settings": {name: getattr(config, name).model_dump(mode="json") for name in ("tokenizer", "transformer")},
        "axes": axes,
        "batch": batch,
        "limit_seconds": limit,
        "device": str(where),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "rows": [],
    }
    for kind in chosen:
        cost = PassCost.counted(kind, config.transformer, build_tokenizer(kind, config.tokenizer, axes, 2))
        with own_process() as call:
            measured: list[dict[str, Any]] = []
            stopped = False
            for side in sides:
                task = Task.of(config, kind, side, axes, batch, repeats, limit, str(where))
                row = on_paper(task, cost)
                note, predicted = _not_tried(row, measured, limit, where)
                stopped = stopped or bool(note)
                if log is not None:
                    log(f"{kind.name} {side}{f': {note}' if note else ''}")
                if stopped:
                    row |= {"note": note, "predicted_seconds": predicted}
                else:
                    try:
                        row |= call(measure, task)
                        measured.append(row)
                    except (MemoryError, RuntimeError) as error:
                        if not _out_of_memory(error):
                            raise
                        row["note"], stopped = "not measured: out of memory", True
                result["rows"].append(row)
                write_json_atomic(out / RESULT, result | summary(result["rows"], chosen, axes))
    return result | summary(result["rows"], chosen, axes)


def check_sides(sides: Sequence[int]) -> None:
    """Raise ConfigError unless there are enough sides for a fit, and they increase."""
    shown = ",".join(map(str, sides))
    if len(sides) < FEWEST:
        raise ConfigError(f"--sides = {shown} is wrong: an exponent needs at least {FEWEST} sides, such as 4,8,16")
    if sides[0] < 2 or any(b <= a for a, b in itertools.pairwise(sides)):
        raise ConfigError(f"--sides = {shown} is wrong: should increase, from 2 on, such as 4,8,16")


def summary(rows: Sequence[dict[str, Any]], kinds: Sequence[Kind], axes: int) -> dict[str, Any]:
    """The ``fits`` and ``ratios`` of the rows so far."""
    fits = [
        {"kind": kind.name, "quantity": name, "which": which, **fit, "theory": kind.theory(axes)}
        for kind in kinds
        for key, name in FITTED.items()
        for which, fit in _fits([row for row in rows if row["kind"] == kind.name], key)
    ]
    drawn = {(row["kind"], row["side"]): row for row in rows if "seconds" in row}
    ratios = [
        {"side": side, "kind": kind}
        | {f"{key}_ratio": row[key] / base[key] for key in ("seconds", "cpu_seconds") if base.get(key)}
        for (kind, side), row in drawn.items()
        if kind != "next-scale" and (base := drawn.get(("next-scale", side))) is not None
    ]
    return {"fits": fits, "ratios": ratios}


def _fits(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[str, dict[str, Any]]]:
    """Fits to all sides that were drawn, and to their larger half; none if that are fewer than three sides.

    Operations are known without drawing, so they are also fitted to the larger half of all sides.
    """
    values = {row["side"]: row[key] for row in rows if (row.get(key) or 0) > 0}
    drawn = [row["side"] for row in rows if "seconds" in row and row["side"] in values]
    if len(drawn) < FEWEST:
        return []
    wanted = {"all sides": drawn, "larger half": larger_half(drawn), "larger half, on paper": larger_half(list(values))}
    named = {tuple(sides): which for which, sides in reversed(wanted.items())}  # of equal ones, the first name stays
    return [
        (which, fit_power_law(sides, [values[side] for side in sides]).to_json())
        for sides, which in reversed(named.items())
    ]


def _not_tried(
    row: dict[str, Any], measured: Sequence[dict[str, Any]], limit: float, device: torch.device
) -> tuple[str, float | None]:
    """Why a row should not be tried (empty if it should), and the seconds that a draw would take, if known."""
    seconds = None
    if measured:
        draws = [(each["passes"], each["flops"], each["seconds"]) for each in measured]
        seconds = predict_seconds(draws, row["passes"], row["flops"])
    free = free_memory(device)
    if free is not None and row["paper_mib"] * MIB > free:
        return f"not tried: needs about {row['paper_mib']:,.0f} MiB, {free / MIB:,.0f} MiB are free", seconds
    if seconds is not None and seconds > limit:
        return f"not tried: about {_rounded(seconds)} s", seconds
    return "", seconds


def _out_of_memory(error: Exception) -> bool:
    """Also if the system has killed the process: nothing else kills it."""
    return is_out_of_memory(error) or isinstance(error, MemoryError | BrokenProcessPool)


def _rounded(seconds: float) -> str:
    """Two digits are all that a forecast has."""
    digits = 1 - math.floor(math.log10(seconds))
    return f"{round(seconds, digits):,.{max(0, digits)}f}"


def _axes(config: RunConfig, case: BenchCase) -> int:
    """Number of axes of the preset's grid; opens its data if nothing stands in for them."""
    implementation = plugins.modality(config.modality)
    description = case.description
    if description is None:
        description = implementation.open_data(config.data).description
    with without_memory():
        tokenizer = implementation.build_tokenizer(config.tokenizer, description)
    return len(tokenizer.schedule().scales[-1].shape)
