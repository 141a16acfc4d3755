"""Properties of graphs as conditions: a class with names, or a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nextscale.plugin import ConditionSpec, DataError, SamplingConfig
from nextscale_graph.attributes import Attribute
from nextscale_graph.config import GraphDataConfig
from nextscale_graph.graphs import GraphBatch

RESERVED = frozenset({"size", "start", *SamplingConfig.model_fields, *dir(nn.ModuleDict()), *dir(nn.ParameterDict())})
"""Names that a condition cannot have."""


@dataclass(frozen=True)
class Properties:
    """The properties that graphs are drawn for.

    Args:
        attributes: what they are; those with names are classes.
        names: of their conditions.
        values: G P, of all graphs; P may be 0.
    """

    attributes: tuple[Attribute, ...]
    names: tuple[str, ...]
    values: np.ndarray

    def assign(self, graphs: Sequence[GraphBatch]) -> list[GraphBatch]:
        """The graphs with these properties."""
        if not self.attributes:
            return [replace(one, graph_values=None, graph_attributes=()) for one in graphs]
        rows = np.split(self.values, len(graphs))
        known = self.attributes
        return [replace(one, graph_values=row, graph_attributes=known) for one, row in zip(graphs, rows, strict=True)]

    def specs(self, training: Sequence[GraphBatch]) -> list[ConditionSpec]:
        """The conditions. Numbers are given as they are, and standardised with the mean and the deviation of the
        training data."""
        rows = [one.graph_values for one in training if one.graph_values is not None]
        found = []
        for column, (attribute, name) in enumerate(zip(self.attributes, self.names, strict=True)):
            if attribute.names:
                found.append(ConditionSpec(name=name, size=len(attribute.names), names=attribute.names))
                continue
            values = np.concatenate([row[:, column] for row in rows])
            deviation = float(values.std()) or 1.0
            mean = float(values.mean())
            found.append(ConditionSpec(name=name, kind="vector", size=1, offset=(mean,), scale=(deviation,)))
        return found

    def tensors(self, samples: GraphBatch) -> dict[str, Tensor]:
        """The conditions of a batch: classes B, numbers B 1."""
        if samples.graph_values is None:
            return {}
        columns = zip(self.attributes, self.names, samples.graph_values.T, strict=True)
        return {
            name: torch.from_numpy(column.astype(np.int64) if attribute.names else column[:, None].astype(np.float32))
            for attribute, name, column in columns
        }

    def describe(self) -> list[dict[str, Any]]:
        """For ``codes.AttributeCodes``, which writes the properties that were asked for."""
        return [
            {"name": one.name, "kind": one.kind, "names": list(one.names), "condition": name}
            for one, name in zip(self.attributes, self.names, strict=True)
        ]


def conditions_of(graphs: Sequence[GraphBatch], config: GraphDataConfig) -> Properties:
    """The properties of all graphs. Integers of at most ``data.bins`` different values are classes.

    Raises:
        DataError: two properties would have the same name as a condition.
    """
    known = graphs[0].graph_attributes
    tables = [one.graph_values for one in graphs if one.graph_values is not None]
    values = np.concatenate(tables) if known and tables else np.zeros((len(graphs), 0))
    attributes = []
    for column, one in enumerate(known):
        different = np.unique(values[:, column])
        if one.kind == "integer" and len(different) <= config.bins:
            one = replace(one, names=tuple(str(int(value)) for value in different))
            values[:, column] = np.searchsorted(different, values[:, column])
        attributes.append(one)
    names = [condition_name(one.name) for one in known]
    for name in names:
        if names.count(name) > 1:
            both = [one.name for one, own in zip(known, names, strict=True) if own == name]
            raise DataError(f"data.property: {' and '.join(map(repr, both))} would both be called {name}: rename one")
    return Properties(tuple(attributes), tuple(names), values)


def condition_name(name: str) -> str:
    """The name of a property on the command line: letters, digits and underscores, and none that is taken."""
    plain = re.sub(r"\W", "_", name)
    return f"graph_{plain}" if plain in RESERVED or not plain else plain
