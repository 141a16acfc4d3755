"""Pictures of fitted laws (extra: plot): losses over size and over compute, with laws and intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nextscale.figures import new_figure, save_figure
from nextscale.scaling.fit import AXES, Fitted, Report, design, measured
from nextscale.scaling.laws import FRONTIER, JOINT, OFFSET, POWER
from nextscale.scaling.results import METRICS

POINTS = 60
"""Points of a curve."""
BEYOND = 2.0
"""Curves go on to this multiple of the largest run."""


def draw_plots(report: Report) -> list[Path]:
    """Write one picture per metric to ``plots/`` in the ladder's folder.

    Raises:
        NextscaleError: matplotlib is not installed.
        TrainingError: a picture cannot be written.
    """
    written = []
    for metric in METRICS:
        fitted = [one for one in report.fitted if one.metric == metric]
        if not fitted:
            continue
        figure, (left, right) = new_figure((11, 4.2), columns=2)
        _over_size(left, report, metric, fitted)
        _over_compute(right, report, metric, fitted)
        written.append(save_figure(figure, report.folder / "plots" / f"{metric.replace(' ', '-')}.png"))
    return written


def _over_size(axis: Any, report: Report, metric: str, fitted: list[Fitted]) -> None:
    what = "parameters of the blocks" if report.count == "blocks" else "parameters"
    for multiple in sorted({run.multiple for run in report.runs}):
        runs = [run for run in report.runs if run.multiple == multiple]
        axis.plot(design(runs, POWER, report.count), measured(runs, metric), "o", label=f"{multiple:g} x tokens")
    sizes = [AXES["N"](run, report.count) for run in report.runs]
    x = np.geomspace(min(sizes), BEYOND * max(sizes), POINTS)
    for one in fitted:
        if one.law is POWER or (one.law is OFFSET):
            _curve(axis, one, x)
        elif one.law is JOINT:
            for tokens in sorted({run.tokens for run in report.runs})[
                :: max(1, len({r.tokens for r in report.runs}) // 4)
            ]:
                y = np.exp(one.fit.predict(np.stack([x, np.full(POINTS, float(tokens))], 1)))
                axis.plot(x, y, ":", color="0.6", linewidth=1)
    _label(axis, f"N ({what})", metric)


def _over_compute(axis: Any, report: Report, metric: str, fitted: list[Fitted]) -> None:
    axis.plot([run.flops for run in report.runs], measured(report.runs, metric), "o", color="0.7", label="runs")
    for one in fitted:
        if one.law is FRONTIER:
            x = design(one.runs, FRONTIER, report.count)[:, 0]
            axis.plot(x, measured(one.runs, metric), "o", label="no cheaper run is better")
            _curve(axis, one, np.geomspace(x.min(), BEYOND * x.max(), POINTS))
    _label(axis, "training operations, counted", metric)


def _curve(axis: Any, one: Fitted, x: np.ndarray) -> None:
    (line,) = axis.plot(x, np.exp(one.fit.predict(x[:, None])), label=one.law.formula)
    low, high = np.array(one.replicates.losses(x[:, None])).T
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _label(axis: Any, x: str, metric: str) -> None:
    axis.set(xscale="log", yscale="log", xlabel=x, ylabel=f"{metric} (validation)")
    axis.legend(fontsize=8)
