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
from nextscale_graph.graphs import GraphBatch, concatenate


class GraphSource:
    """A ``nextscale.data.SampleSource`` of graphs. Its augmentation is the coarsening, which the tokenizer draws from
    the seeds."""

    def __init__(self, graphs: Sequence[GraphBatch]) -> None:
        self.graphs = list(graphs)
        # The number of tokens grows with the sum of degrees. The size is added for graphs without edges.
        self.lengths = np.array([int(one.sizes[0] + 2 * one.edge_counts[0]) for one in self.graphs])

    def __len__(self) -> int:
        return len(self.graphs)

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
        """``samples`` is a ``GraphBatch``; ``conditions["size"]`` is B, int64."""
        samples = concatenate([self.graphs[i] for i in indices.tolist()])
        if seeds is not None:
            samples.seeds = torch.from_numpy((seeds >> np.uint64(1)).astype(np.int64))
        return Batch(samples, {"size": samples.sizes})

    def all(self) -> GraphBatch:
        return concatenate(self.graphs)

    def fingerprint(self) -> str:
        """16 hex digits over sizes, edges and types, in order."""
        whole = vars(self.all())
        names = ("sizes", "edge_counts", "edges", "node_types", "edge_types")
        return fingerprint({name: None if whole[name] is None else whole[name].numpy() for name in names})


def describe(graphs: Sequence[GraphBatch], node_types: Sequence[str], edge_types: Sequence[str]) -> dict[str, Any]:
    """What the tokenizer must know about the training data: how often each size occurs, how often each number of
    components occurs per size, the mean degree, and the names of the types."""
    sizes = Counter(int(one.sizes[0]) for one in graphs)
    components = Counter((int(one.sizes[0]), number_of_components(one)) for one in graphs)
    nodes = sum(size * count for size, count in sizes.items())
    return {
        "sizes": [[size, count] for size, count in sorted(sizes.items())],
        "components": [[size, number, count] for (size, number), count in sorted(components.items())],
        "mean_degree": 2 * sum(int(one.edge_counts[0]) for one in graphs) / nodes,
        "node_types": list(node_types),
        "edge_types": list(edge_types),
    }


def number_of_components(graph: GraphBatch) -> int:
    size, edges = int(graph.sizes[0]), graph.edges.numpy()
    ones = np.ones(edges.shape[1], np.int8)
    return int(connected_components(coo_array((ones, tuple(edges)), (size, size)), directed=False)[0])
