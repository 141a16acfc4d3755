"""Columns of values, as files have them, become attributes of a whole data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nextscale.plugin import DataError
from nextscale_graph.attributes import Attribute
from nextscale_graph.readers.rules import Rules

Columns = Mapping[str, Sequence[Any] | np.ndarray]
"""Values by the name of the attribute, in the order of nodes or edges. None is a missing value."""
MOST_CATEGORIES = 1000
"""Texts with more different values are left out unless they are asked for by name."""
EXACT = 2**53
"""Larger integers are not exact as float64."""


def tabulate(
    parts: Sequence[Columns],
    counts: Sequence[int],
    item: Callable[[int, int], str],
    of: str,
    rules: Rules,
    names_differ: bool = True,
) -> tuple[tuple[Attribute, ...], list[np.ndarray] | None]:
    """The attributes of all graphs, and each graph's values, N A float64 (None if there are no attributes).

    Attributes that cannot be read are left out (``Rules.left_out``), unless they are asked for by name. So are texts
    that differ within every graph: they are names.

    Args:
        parts: the columns of each graph.
        counts: the number of nodes or edges of each graph.
        item: what messages call item j of graph i: ``a.gml: node 7``.
        of: ``node`` or ``edge``.
        names_differ: whether to look for names.

    Raises:
        DataError: an attribute that is asked for has a missing value, one that is neither a text nor a finite number,
            or too many categories.
    """
    found: list[Attribute] = []
    columns: list[list[np.ndarray]] = []
    for name in dict.fromkeys(name for part in parts for name in part):
        if name == "type" or not rules.wants(name):
            continue
        values = [part.get(name, ()) if count else () for part, count in zip(parts, counts, strict=True)]
        named = rules.attributes is not None
        problem = _problem(values, counts, item, name)
        kind = _common({_kind(each) for each in values if len(each)})
        texts = [[str(value) for value in _list(each)] for each in values] if kind == "text" and not problem else []
        names = _categories(texts)
        if len(names) > (most := rules.limits.classes if named else MOST_CATEGORIES):
            problem = f"it has {len(names):,} different texts, more than {most:,}"
        if problem and named:
            raise DataError(f"the {of} attribute {name!r} cannot be read: {problem}")
        if not named and names_differ and kind == "text" and _are_names(texts):
            problem = "a different text everywhere, like a name"
        if problem:
            rules.left_out[f"{of} {name}"] = problem
        elif kind == "text":
            place = {text: float(i) for i, text in enumerate(names)}
            found.append(Attribute(name, "text", tuple(names)))
            columns.append([np.array([place[text] for text in each], float) for each in texts])
        elif kind is not None:
            found.append(Attribute(name, kind, ("False", "True") if kind == "bool" else ()))
            columns.append([np.asarray(each, float) for each in values])
    if not found:
        return (), None
    return tuple(found), [np.stack(rows, 1) for rows in zip(*columns, strict=True)]


def _problem(
    values: Sequence[Sequence[Any] | np.ndarray], counts: Sequence[int], item: Callable[[int, int], str], name: str
) -> str | None:
    """Why values cannot be an attribute: one is missing, or is no text and no finite number."""
    for i, (each, count) in enumerate(zip(values, counts, strict=True)):
        if not isinstance(each, np.ndarray) and None in each:
            return f"{item(i, list(each).index(None))} has no {name}"
        if len(each) < count:
            return f"{item(i, len(each))} has no {name}"
        kind = _kind(each) if len(each) else "text"
        if kind is None:
            return f"{item(i, 0)} has neither a text nor a number"
        if kind in ("integer", "real"):
            for j, value in enumerate(each.tolist() if isinstance(each, np.ndarray) else each):
                if isinstance(value, float) and not math.isfinite(value):
                    return f"{item(i, j)} has the {name} {value}"
                if isinstance(value, int) and abs(value) > EXACT:
                    return f"{item(i, j)} has the {name} {str(value)[:40]}, which is beyond 2^53"
    return None


def _list(values: Sequence[Any] | np.ndarray) -> list[Any]:
    if not isinstance(values, np.ndarray):
        return list(values)
    return [each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in values.tolist()]


def _kind(values: Sequence[Any] | np.ndarray) -> str | None:
    """What these values are; None if they are neither texts nor booleans nor numbers."""
    if isinstance(values, np.ndarray):
        return {"U": "text", "S": "text", "b": "bool", "i": "integer", "u": "integer", "f": "real"}.get(
            values.dtype.kind
        )
    kinds = set()
    for each in values:
        if each is None:
            continue
        kind = next((kind for types, kind in _TYPES if isinstance(each, types)), None)
        if kind is None:
            return None
        kinds.add(kind)
    return _common(kinds) or "text"


_TYPES: list[tuple[Any, str]] = [
    ((bool, np.bool_), "bool"),
    ((int, np.integer), "integer"),
    ((float, np.floating), "real"),
    (str, "text"),
]


def _common(kinds: set[str | None]) -> str | None:
    if len(kinds) < 2:
        return next(iter(kinds), None)
    return "real" if kinds == {"integer", "real"} else "text"


def _are_names(texts: Sequence[Sequence[str]]) -> bool:
    return any(len(each) > 1 for each in texts) and all(len(set(each)) == len(each) for each in texts)


def _categories(texts: Sequence[Sequence[str]]) -> list[str]:
    return sorted({text for each in texts for text in each}, key=by_number)


def by_number(name: str) -> tuple[bool, int, str]:
    """Sorts numbers by value, before all other texts."""
    number = name.isdecimal() and len(name) < 1000
    return not number, int(name) if number else 0, name
