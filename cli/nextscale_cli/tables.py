"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

FLOOR = "_floor"


def print_results(results: Mapping[str, Any], title: str | None = None) -> None:
    """Print a nested mapping, one line per value; KEY_floor is shown beside KEY."""
    rows = list(_rows(results, ""))
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


def _rows(results: Mapping[str, Any], prefix: str) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for key, value in results.items():
        if key.endswith(FLOOR) and key.removesuffix(FLOOR) in results:
            continue
        if isinstance(value, Mapping):
            rows += _rows(value, f"{prefix}{key}.")
            continue
        floor = results.get(f"{key}{FLOOR}")
        rows.append((f"{prefix}{key}", show(value), "" if floor is None else show(floor)))
    return rows


def show(value: Any) -> str:
    """A value in readable form: four significant digits, thousands separators, sequences on one line."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return " ".join(show(entry) for entry in value) or "–"
    return str(value)
