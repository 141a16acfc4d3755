"""The growth of time, operations and memory as one picture with logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextscale.figures import new_figure, plain_ticks, save_figure

PANELS = {"seconds": "seconds per draw", "flops": "operations per draw", "peak_mib": "peak memory, MiB"}


def plot_growth(result: Mapping[str, Any], path: Path) -> Path:
    """Write a picture, in the format that the suffix names, of what ``bench_growth`` returned.

    Hollow points are operations of draws that were not made. Exponents are those of the larger sides, if they are
    fitted apart.

    Raises:
        NextscaleError: matplotlib is not installed.
    """
    rows, sides = result["rows"], sorted({row["side"] for row in result["rows"]})
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    exponents = {(fit["kind"], fit["quantity"]): fit["exponent"] for fit in result["fits"]}
    figure, panels = new_figure((12, 4), columns=len(PANELS))
    for axes, (key, label), quantity in zip(panels, PANELS.items(), ("time", "operations", "memory"), strict=True):
        for number, kind in enumerate(kinds):
            own = [row for row in rows if row["kind"] == kind and (row.get(key) or 0) > 0]
            done = [row for row in own if "seconds" in row]
            exponent = exponents.get((kind, quantity))
            name = kind if exponent is None else f"{kind}, n^{exponent:.1f}"
            colour = f"C{number}"
            axes.plot([row["side"] for row in own], [row[key] for row in own], color=colour, linewidth=1)
            axes.plot([row["side"] for row in done], [row[key] for row in done], "o", color=colour, label=name)
            rest = [row for row in own if "seconds" not in row]
            axes.plot(
                [row["side"] for row in rest], [row[key] for row in rest], "o", color=colour, markerfacecolor="none"
            )
        axes.set(xscale="log", yscale="log", xlabel="side n of the latent grid", ylabel=label)
        plain_ticks(axes.xaxis, sides)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return save_figure(figure, path)
