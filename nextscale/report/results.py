"""Nested results as lines of text, for terminals and reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FLOOR = "_floor"


def flat_rows(results: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str, str]]:
    """For each value of a nested mapping: its dotted key, the value, and KEY_floor (empty if there is none)."""
    rows: list[tuple[str, str, str]] = []
    for key, value in results.items():
        if key.endswith(FLOOR) and key.removesuffix(FLOOR) in results:
            continue
        if isinstance(value, Mapping):
            rows += flat_rows(value, f"{prefix}{key}.")
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
