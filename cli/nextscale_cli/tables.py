"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from nextscale.report.results import flat_rows, show


def print_results(results: Mapping[str, Any], title: str | None = None) -> None:
    """Print a nested mapping, one line per value; KEY_floor is shown beside KEY."""
    rows = flat_rows(results)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("value", justify="right", overflow="fold")
    if any(floor for _, _, floor in rows):
        table.add_column("real against real", justify="right")
    for row in rows:
        table.add_row(*row[: len(table.columns)])
    _console().print(table)


def print_rows(rows: Sequence[Mapping[str, Any]], title: str | None = None, stderr: bool = False) -> None:
    """Print records, one line each; the columns are all their keys."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(show(row.get(column)) for column in columns))
    _console(stderr).print(table)


def _console(stderr: bool = False) -> Console:
    console = Console(markup=False, highlight=False, stderr=stderr)
    if not console.is_terminal:  # a file or a pipe has no width to fit
        console.width = 200
    return console
