"""One split of graphs, read in batches, and the description of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nextscale.plugin import Batch, fingerprint
from nextscale_graph.attributes import Attribute, learn_code
from nextscale_graph.conditions import Properties
from nextscale_graph.graphs import VALUES, GraphBatch, concatenate


class GraphSource:
    """A ``nextscale.data.SampleSource`` of graphs. Its augmentation is the coarsening, which the tokenizer draws from
    the seeds."""

    def __init__(self, graphs: Sequence[GraphBatch], properties: Properties | None = None) -> None:
        self.graphs, self.properties = list(graphs), properties
        # The number of tokens grows with the sum of degrees. The size is added for graphs without edges.
        self.lengths = np.array([int(one.sizes[0] + 2 * one.edge_counts[0]) for one in self.graphs])

    def __len__(self) -> int:
        return len(self.graphs)

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
        """``samples`` is a ``GraphBatch``; ``conditions["size"]`` is B, int64. Properties are B (classes) or B 1
        (numbers)."""
        samples = concatenate([self.graphs[i] for i in indices.tolist()])
        if seeds is not None:
            samples.seeds = torch.from_numpy((seeds >> np.uint64(1)).astype(np.int64))
        known = {} if self.properties is None else self.properties.tensors(samples)
        return Batch(samples, {"size": samples.sizes, **known})

    def all(self) -> GraphBatch:
        return concatenate(self.graphs)

    def fingerprint(self) -> str:
        """16 hex digits over sizes, edges, types, attributes and properties, in order."""
        whole = vars(self.all())
        names = ("sizes", "edge_counts", "edges", "node_types", "edge_types")
        parts: dict[str, object] = {name: None if whole[name] is None else whole[name].numpy() for name in names}
        return fingerprint(parts | {name: whole[name] for name in VALUES if whole[name] is not None})


def describe(
    graphs: Sequence[GraphBatch], node_types: Sequence[str], edge_types: Sequence[str], bins: int = 16
) -> dict[str, Any]:
    """What the tokenizer must know about the training data: how often each size occurs, how often each number of
    components occurs per size, the mean degree, the names of the types, and the codes of attributes."""
    sizes = Counter(int(one.sizes[0]) for one in graphs)
    components = Counter((int(one.sizes[0]), number_of_components(one)) for one in graphs)
    nodes = sum(size * count for size, count in sizes.items())
    return {
        "sizes": [[size, count] for size, count in sorted(sizes.items())],
        "components": [[size, number, count] for (size, number), count in sorted(components.items())],
        "mean_degree": 2 * sum(int(one.edge_counts[0]) for one in graphs) / nodes,
        "node_types": list(node_types),
        "edge_types": list(edge_types),
        "node_attributes": _codes(graphs[0].node_attributes, [one.node_values for one in graphs], bins),
        "edge_attributes": _codes(graphs[0].edge_attributes, [one.edge_values for one in graphs], bins),
    }


def _codes(attributes: Sequence[Attribute], values: list[np.ndarray | None], bins: int) -> list[dict[str, Any]]:
    table = [each for each in values if each is not None]
    columns = np.concatenate(table).T if table else ()
    return [learn_code(one, column, bins).describe() for one, column in zip(attributes, columns, strict=False)]


def number_of_components(graph: GraphBatch) -> int:
    size, edges = int(graph.sizes[0]), graph.edges.numpy()
    ones = np.ones(edges.shape[1], np.int8)
    return int(connected_components(coo_array((ones, tuple(edges)), (size, size)), directed=False)[0])
