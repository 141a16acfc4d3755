"""A picture of a comparison: every measure of quality against the time that a sample takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextscale.bench.compare import measures
from nextscale.figures import new_panels, plain_ticks, save_figure


def plot_comparison(results: Mapping[str, Any], path: Path) -> Path:
    """Write one panel per measure that has a floor (the score of real samples, dashed): a point per kind and guidance.

    Args:
        results: what ``compare`` returns.

    Raises:
        NextscaleError: matplotlib is not installed.
        TrainingError: the file cannot be written.
    """
    kinds = results["kinds"]
    large = f"ms_batch_{results['measured']['batch_size']}"
    floors = {
        key: values[f"{key}_floor"]
        for row in kinds.values()
        for values in row["samples"].values()
        for key in measures(values)
        if values.get(f"{key}_floor") is not None
    }
    shown = [*floors] or sorted({key for row in kinds.values() for v in row["samples"].values() for key in measures(v)})
    figure, panels = new_panels(len(shown))
    for axes, key in zip(panels, shown, strict=False):
        for k, (name, row) in enumerate(kinds.items()):
            told = [(g, values) for g, values in row["samples"].items() if values.get(key) is not None]
            times = [row["costs"]["sampling"][g][large] for g, _ in told]
            axes.errorbar(
                times, [values[key] for _, values in told], [values.get(f"{key}_std", 0.0) for _, values in told],
                fmt="o", color=f"C{k}", capsize=3, label=name,
            )  # fmt: skip
            for moment, (g, values) in zip(times, told, strict=True):
                axes.annotate(g, (moment, values[key]), xytext=(4, 4), textcoords="offset points", fontsize=7)
        if key in floors:
            axes.axhline(floors[key], color="grey", linestyle="--", linewidth=1, label="real samples")
        axes.set(xscale="log", title=key.replace("_", " "), xlabel=f"ms per sample, batch {large.rpartition('_')[2]}")
        plain_ticks(axes.xaxis)
        axes.grid(alpha=0.3)
    if shown:
        panels[0].legend(fontsize=8)
    return save_figure(figure, path)
