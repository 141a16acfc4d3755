"""Plots (extra: plot): one place that asks for matplotlib, and writes figures whole or not at all."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nextscale.errors import NextscaleError
from nextscale.storage.files import replacing

MISSING = "the plot needs matplotlib, which is not installed: pip install 'nextscale[plot]'"


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def new_figure(size: tuple[float, float], rows: int = 1, columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure of ``size`` inches (width, height), and its panels (matplotlib's ``Axes``), row by row.

    Raises:
        NextscaleError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NextscaleError(MISSING) from None
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flatten())


def new_panels(number: int, columns: int = 3) -> tuple[Any, list[Any]]:
    """A figure with ``number`` panels, at least one, in rows of ``columns``.

    Raises:
        NextscaleError: matplotlib is not installed.
    """
    number = max(1, number)
    columns = min(number, columns)
    rows = -(-number // columns)
    figure, panels = new_figure((4.5 * columns, 3.6 * rows), rows, columns)
    for spare in panels[number:]:
        spare.remove()
    return figure, panels[:number]


def plain_ticks(axis: Any, at: list[int] | None = None) -> None:
    """Label a logarithmic axis with plain numbers: at 1, 2 and 5 times powers of ten, or ``at`` these values."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, ScalarFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if at is None else FixedLocator(at))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure in the format that the suffix of ``path`` names.

    Raises:
        TrainingError: the file cannot be written.
    """
    from matplotlib import rc_context

    # Text stays text: a tenth of the size of outlines, and it can be read aloud and searched.
    with replacing(path) as partial, rc_context({"svg.fonttype": "none"}):
        figure.savefig(partial, format=path.suffix.lstrip("."), dpi=130)
    return path
