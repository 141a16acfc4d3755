"""The growth of time, operations and memory as one picture with logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextscale.errors import NextscaleError
from nextscale.storage.files import replacing

PANELS = {"seconds": "seconds per draw", "flops": "operations per draw", "peak_mib": "peak memory, MiB"}
MISSING = "the plot needs matplotlib, which is not installed: pip install 'nextscale[plot]'"


def plot_growth(result: Mapping[str, Any], path: Path) -> Path:
    """Write a picture, in the format that the suffix names, of what ``bench_growth`` returned.

    Hollow points are operations of draws that were not made. Exponents are those of the larger sides, if they are
    fitted apart.

    Raises:
        NextscaleError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullFormatter, ScalarFormatter
    except ImportError:
        raise NextscaleError(MISSING) from None

    rows, sides = result["rows"], sorted({row["side"] for row in result["rows"]})
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    exponents = {(fit["kind"], fit["quantity"]): fit["exponent"] for fit in result["fits"]}
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
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
        axes.set_xticks(sides)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    with replacing(path) as partial:
        figure.savefig(partial, format=path.suffix.lstrip("."))
    return path
