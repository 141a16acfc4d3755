"""A picture of ``bench rate``: every measure of distortion against what the tokens of a sample cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextscale.bench.rate import NOT_DISTORTION, rate_rows
from nextscale.figures import new_panels, save_figure


def plot_rate(results: Mapping[str, Any], path: Path) -> Path:
    """Write one panel per measure of distortion: a point per kind, and dashed what real samples score.

    Args:
        results: what ``rate`` returns.

    Raises:
        NextscaleError: matplotlib is not installed.
        TrainingError: the file cannot be written.
    """
    kinds = [row for row in rate_rows(results) if row.get("nats_per_sample") is not None]
    floors = next((row for row in rate_rows(results) if "nats_per_sample" not in row), {})
    shown = list(dict.fromkeys(key for row in kinds for key in row if key not in NOT_DISTORTION))
    figure, panels = new_panels(len(shown))
    for axes, key in zip(panels, shown, strict=False):
        for k, row in enumerate(kinds):
            if row.get(key) is not None:
                place = row["nats_per_sample"], row[key]
                axes.errorbar(*place, xerr=row["nats_std"], fmt="o", color=f"C{k % 10}", capsize=3)
                axes.annotate(row["kind"], place, xytext=(4, 4), textcoords="offset points", fontsize=7)
        if floors.get(key) is not None:
            axes.axhline(floors[key], color="grey", linestyle="--", linewidth=1)
        axes.set(title=key.replace("_", " "), xlabel="nats per sample")
        axes.grid(alpha=0.3)
    return save_figure(figure, path)
