"""The tokens of all attributes of a data set, and the properties that its graphs are drawn for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale.plugin import DataError
from nextscale_graph.attributes import Attribute, Code, column_of, read_code
from nextscale_graph.graphs import GraphBatch

TYPE = "type"
"""The name of the attribute that molecules and drawings use. It is always a category, and drawn first."""


@dataclass(frozen=True)
class AttributeCodes:
    """How values become tokens.

    Args:
        node_types, edge_types: names of the types; empty if there are none.
        nodes, edges: the codes of all other attributes, in the order in which they are drawn.
        properties: what the graphs' properties are, each with the name of its condition.
    """

    node_types: tuple[str, ...]
    edge_types: tuple[str, ...]
    nodes: tuple[Code, ...]
    edges: tuple[Code, ...]
    properties: tuple[tuple[Attribute, str], ...]

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> AttributeCodes:
        """From the description of the data. Models of release 0.1.0 know types only."""
        nodes, edges = (
            tuple(read_code(each) for each in description.get(f"{of}_attributes", ())) for of in ("node", "edge")
        )
        properties = tuple(
            (Attribute(each["name"], each["kind"], tuple(each["names"])), each["condition"])
            for each in description.get("properties", ())
        )
        types = tuple(description["node_types"]), tuple(description["edge_types"])
        return cls(*(types if types[0] else ((), ())), nodes, edges, properties)

    @property
    def lengths(self) -> tuple[dict[str, int], dict[str, int]]:
        """The number of tokens of each attribute of nodes, and of edges."""
        nodes, edges = (
            ({TYPE: len(types)} if types else {}) | {code.attribute.name: len(code) for code in codes}
            for types, codes in ((self.node_types, self.nodes), (self.edge_types, self.edges))
        )
        return nodes, edges

    @property
    def names(self) -> tuple[str, ...]:
        """All attributes of nodes and edges."""
        return tuple(dict.fromkeys(name for lengths in self.lengths for name in lengths))

    def encode(self, samples: GraphBatch) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The tokens of each attribute of all nodes (N) and of all edges (E).

        Raises:
            DataError: an attribute is missing, or has a value that the training data did not have.
        """
        nodes = _encode(self.nodes, samples.node_values, samples.node_attributes, "node")
        edges = _encode(self.edges, samples.edge_values, samples.edge_attributes, "edge")
        if self.node_types:
            if samples.node_types is None or samples.edge_types is None:
                raise DataError(f"graphs have no attribute {TYPE!r}, which the training data has")
            nodes = [samples.node_types.cpu().numpy(), *nodes]
            edges = [samples.edge_types.cpu().numpy(), *edges]
        return nodes, edges

    def decode(
        self, graphs: GraphBatch, nodes: Tensor | None, edges: Tensor | None, properties: Tensor | None
    ) -> GraphBatch:
        """``graphs`` with the attributes that the tokens N A and E A' stand for (plus one; 0 is not drawn yet, and
        counts as the first), and with the properties that were asked for (B P)."""
        if nodes is not None and edges is not None:
            tokens = [(each - 1).clamp_min(0) for each in (nodes, edges)]
            if self.node_types:
                graphs = replace(
                    graphs,
                    node_types=tokens[0][:, 0],
                    edge_types=tokens[1][:, 0],
                    node_names=self.node_types,
                    edge_names=self.edge_types,
                )
                tokens = [each[:, 1:] for each in tokens]
            graphs = replace(
                graphs,
                node_values=_decode(self.nodes, tokens[0]),
                edge_values=_decode(self.edges, tokens[1]),
                node_attributes=tuple(code.attribute for code in self.nodes),
                edge_attributes=tuple(code.attribute for code in self.edges),
            )
        if properties is None:
            return graphs
        # Conditions are float32: 0.3 comes back as 0.30000001192.
        exact = [[float(f"{value:.7g}") for value in row] for row in properties.cpu().tolist()]
        known = tuple(attribute for attribute, _ in self.properties)
        return replace(graphs, graph_values=np.array(exact, float), graph_attributes=known)

    def requested(self, conditions: Mapping[str, Tensor]) -> Tensor | None:
        """B P: the properties among the conditions, NaN for those not given; None if there are none."""
        given = [conditions.get(condition) for _, condition in self.properties]
        first = next((value for value in given if value is not None), None)
        if first is None:
            return None
        unknown = torch.full((len(first),), torch.nan, device=first.device)
        return torch.stack([unknown if value is None else value.reshape(len(first)).float() for value in given], 1)


def _encode(
    codes: Sequence[Code], values: np.ndarray | None, attributes: Sequence[Attribute], of: str
) -> list[np.ndarray]:
    found = []
    for code in codes:
        column = column_of(attributes if values is not None else (), code.attribute.name, of)
        assert values is not None
        found.append(code.encode(values[:, column], attributes[column]))
    return found


def _decode(codes: Sequence[Code], tokens: Tensor) -> np.ndarray | None:
    """N A values of tokens N A."""
    rows = tokens.cpu().numpy()
    return np.stack([code.decode(rows[:, i]) for i, code in enumerate(codes)], 1) if codes else None
