"""Fit scaling laws to a ladder's results, and check each on its largest size, which the fit does not see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nextscale.errors import DataError
from nextscale.scaling.intervals import LEVEL, Replicates, bootstrap
from nextscale.scaling.laws import FRONTIER, JOINT, OFFSET, POWER, Fit, Law, fit
from nextscale.scaling.results import METRICS, Result, read_results
from nextscale.storage.files import write_json_atomic

REPORT = "report.json"
COUNTS = ("blocks", "parameters")
AXES: dict[str, Callable[[Result, str], float]] = {
    "N": lambda run, count: getattr(run, count),
    "D": lambda run, count: run.tokens,
    "C": lambda run, count: run.flops,
}


@dataclass
class Fitted:
    """A law fitted to all runs of ``runs``, with its bootstrap, for plots; ``row`` is what the report says."""

    metric: str
    law: Law
    runs: list[Result]
    fit: Fit
    replicates: Replicates
    row: dict[str, Any]


@dataclass
class Report:
    """What ``fit_ladder`` found: laws, and why others could not be fitted."""

    folder: Path
    count: str
    runs: list[Result]
    unfinished: list[str]
    fitted: list[Fitted] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "N": self.count, "level of intervals": LEVEL, "runs": [asdict(run) for run in self.runs],
            "unfinished": self.unfinished, "fits": [one.row for one in self.fitted], "notes": self.notes,
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """For people: one line per law."""
        return [_line(one.row) for one in self.fitted]


def fit_ladder(folder: Path, count: str = "blocks", replicates: int = 200, seed: int = 0) -> Report:
    """Fit the laws to every finished run of a ladder's folder, and write ``report.json`` there.

    ``L(N)`` is fitted to the runs with the largest multiple of tokens, ``L(N, D)`` to all, and the frontier to the runs
    that no other run beats with as few operations.

    Args:
        count: what N is: ``blocks`` or all ``parameters`` (``ladder.Rung``).
        replicates: repetitions of the bootstrap.

    Raises:
        DataError: the folder holds no ladder, one of different settings, or too few runs for any law.
        CheckpointError, ConfigError: a file is damaged.
    """
    runs, unfinished = read_results(folder)
    report = Report(folder, count, runs, unfinished)
    if unfinished:
        report.notes.append(f"{len(unfinished)} runs are not finished and left out: {', '.join(unfinished)}")
    for metric in METRICS:
        for law, chosen in _choices(runs, metric):
            lacking = _lacking(law, chosen)
            if lacking:
                report.notes.append(f"{law.name} ({law.formula}), {metric}: {lacking}")
            elif min(run.losses[metric] for run in chosen) <= 0:
                report.notes.append(f"{law.name}, {metric}: a run has none, and its logarithm does not exist")
            else:
                report.fitted.append(_fit(metric, law, chosen, count, replicates, seed))
    report.notes = list(dict.fromkeys(report.notes))
    if not report.fitted:
        raise DataError(f"{folder}: no law can be fitted: {report.notes[-1] if report.notes else 'there are no runs'}")
    write_json_atomic(folder / REPORT, _plain(report.as_json()))
    return report


def design(runs: Sequence[Result], law: Law, count: str) -> np.ndarray:
    """What a law is a function of: runs by variables."""
    return np.array([[float(AXES[name](run, count)) for name in law.variables] for run in runs])


def measured(runs: Sequence[Result], metric: str) -> np.ndarray:
    return np.array([run.losses[metric] for run in runs])


def _choices(runs: Sequence[Result], metric: str) -> list[tuple[Law, list[Result]]]:
    most = max((run.multiple for run in runs), default=0.0)
    longest = [run for run in runs if run.multiple == most]
    # Dearer runs count only if they are better than every cheaper one.
    cheapest_first = sorted(runs, key=lambda run: run.flops)
    efficient = [
        run
        for i, run in enumerate(cheapest_first)
        if all(run.losses[metric] < other.losses[metric] for other in cheapest_first[:i])
    ]
    return [(POWER, longest), (OFFSET, longest), (JOINT, list(runs)), (FRONTIER, efficient)]


def _lacking(law: Law, runs: Sequence[Result]) -> str | None:
    """Why the runs are too few for a law and a held-out size; None if they suffice."""
    sizes = {run.blocks for run in runs}
    tokens = {run.tokens for run in runs}
    kept = sum(run.blocks < max(sizes) for run in runs) if sizes else 0
    if law is FRONTIER:
        return None if len(runs) > law.fewest else f"needs {law.fewest + 1} efficient runs, there are {len(runs)}"
    if law is JOINT:
        if len(sizes) < 4 or len(tokens) < 3 or kept < law.fewest:
            return (
                f"needs 4 sizes with 3 numbers of tokens, and {law.fewest} runs below the largest size; there are "
                f"{len(sizes)} sizes, {len(tokens)} numbers of tokens, {kept} runs"
            )
        return None
    need = law.fewest + 1
    return (
        None if len(sizes) >= need else f"needs {need} sizes with the same multiple of tokens, there are {len(sizes)}"
    )


def _fit(metric: str, law: Law, runs: list[Result], count: str, replicates: int, seed: int) -> Fitted:
    x, losses = design(runs, law, count), measured(runs, metric)
    whole = fit(law, x, losses)
    repeated = bootstrap(whole, x, replicates, seed)
    # The frontier's runs differ in size and in tokens: the dearest is held out.
    largest = np.array([run.flops if law is FRONTIER else run.blocks for run in runs])
    below = largest < largest.max()
    partial = fit(law, x[below], losses[below])
    predicted = np.exp(partial.predict(x[~below]))
    intervals = bootstrap(partial, x[below], replicates, seed + 1).losses(x[~below])
    names = [run.name for run, kept in zip(runs, below, strict=True) if not kept]
    held_out = [
        {"run": name, "predicted": float(value), "low": low, "high": high, "measured": float(truth),
         "inside": bool(low <= truth <= high)}
        for name, value, (low, high), truth in zip(names, predicted, intervals, losses[~below], strict=True)
    ]  # fmt: skip
    bounds = repeated.parameters()
    row: dict[str, Any] = {
        "metric": metric, "law": law.name, "formula": law.formula, "runs": len(runs),
        "parameters": {name: {"value": value, "low": bounds[name][0], "high": bounds[name][1]}
                       for name, value in whole.parameters().items()},
        "residual": whole.spread, "starts": whole.starts, "starts that agree": whole.agree,
        "objective": whole.objective, "held out": held_out,
    }  # fmt: skip
    if not law.floor:
        row["pearson r"] = _pearson(x[:, 0], losses)
    if law is JOINT:
        row["compute-optimal"] = optimal_sizes(whole.parameters(), np.array([run.flops for run in runs]))
    return Fitted(metric, law, runs, whole, repeated, row)


def optimal_sizes(law: dict[str, float], flops: np.ndarray) -> dict[str, Any]:
    """Which N and D a law calls best for C = 6 N D operations, at the cheapest and the dearest run's C.

    N grows as C^(beta / (alpha + beta)), D as C^(alpha / (alpha + beta)) (Hoffmann et al. 2022, approach 3).
    """
    alpha, beta = law["alpha"], law["beta"]
    if min(alpha, beta, law["A"], law["B"]) <= 0:
        return {"note": "the law does not fall in both N and D"}
    share = beta / (alpha + beta)
    scale = (alpha * law["A"] / (beta * law["B"])) ** (1 / (alpha + beta))
    rows = []
    for c in (flops.min(), flops.max()):
        n = scale * (c / 6) ** share
        d = c / 6 / n
        rows.append(
            {
                "C": float(c),
                "N": float(n),
                "D": float(d),
                "L": float(law["E"] + law["A"] * n**-alpha + law["B"] * d**-beta),
            }
        )
    return {"N grows as C to the power": share, "D grows as C to the power": 1 - share, "at": rows}


def _pearson(x: np.ndarray, losses: np.ndarray) -> float:
    """Correlation of log x and log loss, as VAR reports it."""
    x, y = np.log(x), np.log(losses)
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else float("nan")


def _line(row: dict[str, Any]) -> dict[str, Any]:
    found = "  ".join(
        f"{name} {_short(one['value'])} [{_short(one['low'])}, {_short(one['high'])}]"
        for name, one in row["parameters"].items()
    )
    last = row["held out"][-1]
    inside = sum(one["inside"] for one in row["held out"])
    return {
        "metric": row["metric"], "law": row["formula"],
        "runs": row["runs"], "parameters": found,
        "r": row.get("pearson r"), "starts_that_agree": f"{row['starts that agree']} of {row['starts']}",
        "held_out": f"{last['run']}: predicted {last['predicted']:.4f} [{last['low']:.4f}, {last['high']:.4f}], "
        f"measured {last['measured']:.4f}", "inside": f"{inside} of {len(row['held out'])}",
    }  # fmt: skip


def _short(value: float) -> str:
    return f"{value:.3g}"


def _plain(value: Any) -> Any:
    """``value`` for JSON, which has no infinity and no NaN; numbers keep every digit."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
