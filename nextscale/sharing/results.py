"""The numbers of ``eval.json`` that stand for a run as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

FLOOR = "_floor"


@dataclass(frozen=True)
class Result:
    """A measured number: ``name`` is ``psnr``, ``label`` is ``reconstruction psnr``."""

    name: str
    label: str
    value: float

    @property
    def is_floor(self) -> bool:
        return self.name.endswith(FLOOR)

    @property
    def shown(self) -> str:
        return f"{self.value:.4g}" if abs(self.value) < 1e4 else f"{self.value:,.0f}"


def measured(results: Mapping[str, Any]) -> Iterator[Result]:
    """All numbers but those of single scales, in their order; none if nothing was measured.

    ``results`` is what ``eval.json`` holds: the results themselves, or a record with them under ``results``.
    """
    inner = results.get("results")
    yield from _numbers(inner if isinstance(inner, Mapping) else results, ())


def _numbers(values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Result]:
    totals = {key.removesuffix("_total") for key in values if key.endswith("_total")}
    for key, value in values.items():
        # Measures of one scale are written loss/NAME beside loss, and used_NAME beside used_total.
        of_a_scale = "/" in key or any(
            key.startswith(f"{name}_") and key.removeprefix(f"{name}_") != "total" for name in totals
        )
        if of_a_scale:
            continue
        if isinstance(value, Mapping):
            where = f"guidance {key}" if path == ("samples",) else key
            yield from _numbers(value, (*path, where))
        elif isinstance(value, int | float) and not isinstance(value, bool) and path:
            yield Result(key, " ".join((*path, key.replace("_", " "))), float(value))
