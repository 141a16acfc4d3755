"""Attributes of nodes, edges and graphs: categories or numbers, and the tokens that stand for their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nextscale.plugin import DataError

Value = str | bool | int | float


@dataclass(frozen=True)
class Attribute:
    """What the values of an attribute are. Arrays hold them as float64: categories as positions in ``names``.

    Args:
        name: of the attribute.
        kind: ``text`` and ``bool`` are categories, ``integer`` and ``real`` are numbers. Integers with names are
            categories too.
        names: of the categories; empty for numbers.
    """

    name: str
    kind: str
    names: tuple[str, ...] = ()

    @property
    def is_number(self) -> bool:
        return self.kind in ("integer", "real") and not self.names

    def values(self, stored: np.ndarray) -> list[Value]:
        """Stored numbers (N) as a file has them: texts, booleans, integers or floats."""
        if not self.is_number:
            words = [self.names[int(i)] for i in stored.tolist()]
            read: Any = {"bool": lambda word: word == "True", "integer": int}.get(self.kind, str)
            return [read(word) for word in words]
        return [int(each) if self.kind == "integer" else each for each in stored.tolist()]


@dataclass(frozen=True)
class Code:
    """The tokens of one attribute. Each category has a token, and each bin of numbers.

    Args:
        attribute: what the values are.
        edges: borders between the bins, ascending; a value on a border belongs to the bin above it.
        values: the number that stands for each bin.
    """

    attribute: Attribute
    edges: tuple[float, ...] = ()
    values: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.values) if self.attribute.is_number else len(self.attribute.names)

    def encode(self, stored: np.ndarray, attribute: Attribute) -> np.ndarray:
        """Tokens N of the values N of ``attribute``, which is this one as another file describes it.

        Raises:
            DataError: a category that the training data did not have, or texts where it had numbers.
        """
        own = self.attribute
        if own.is_number != attribute.is_number:
            raise DataError(f"the attribute {own.name!r} is {attribute.kind} here, but {own.kind} in the training data")
        if own.is_number:
            return np.searchsorted(self.edges, stored, "right")
        if own.names == attribute.names:
            return stored.astype(np.int64)
        place = {name: i for i, name in enumerate(own.names)}
        unknown = [name for name in {attribute.names[int(i)] for i in stored} if name not in place]
        if unknown:
            raise DataError(f"the attribute {own.name!r} has the value {unknown[0]!r}, which no training graph has")
        table = np.array([place.get(name, 0) for name in attribute.names], np.int64)
        return table[stored.astype(np.int64)]

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """The stored values of tokens N: the number that stands for the bin."""
        return np.asarray(self.values, float)[tokens] if self.attribute.is_number else tokens.astype(float)

    def describe(self) -> dict[str, Any]:
        own = self.attribute
        rest = {"edges": list(self.edges), "values": list(self.values)} if own.is_number else {"names": list(own.names)}
        return {"name": own.name, "kind": own.kind, **rest}


def read_code(described: Mapping[str, Any]) -> Code:
    """The code that ``Code.describe`` described."""
    attribute = Attribute(described["name"], described["kind"], tuple(described.get("names", ())))
    return Code(attribute, tuple(described.get("edges", ())), tuple(described.get("values", ())))


def learn_code(attribute: Attribute, stored: np.ndarray, bins: int) -> Code:
    """The code of an attribute, from the values of the training data (N).

    Numbers of at most ``bins`` different values have a bin for each. Otherwise bins are quantiles, with about as many
    values in each. A bin is written as its median, which is one of its values.
    """
    if not attribute.is_number:
        return Code(attribute)
    different = np.unique(stored) if len(stored) else np.zeros(1)
    if len(different) <= bins:
        borders = different[:-1] + np.diff(different) / 2
        # Neighbouring floats have no number between them: a border then lies on the upper one.
        return Code(
            attribute,
            tuple(np.maximum(borders, np.nextafter(different[:-1], np.inf)).tolist()),
            tuple(different.tolist()),
        )
    borders = np.unique(np.quantile(stored, np.arange(1, bins) / bins, method="higher"))
    borders = borders[borders > different[0]]
    groups = np.split(np.sort(stored), np.searchsorted(np.sort(stored), borders, "left"))
    medians = [float(np.quantile(group, 0.5, method="lower")) for group in groups]
    return Code(attribute, tuple(borders.tolist()), tuple(medians))


def column_of(attributes: Sequence[Attribute], name: str, of: str) -> int:
    """The position of an attribute. Raises DataError if it is missing."""
    names = [each.name for each in attributes]
    if name not in names:
        raise DataError(f"graphs have no {of} attribute {name!r}, which the training data has")
    return names.index(name)
