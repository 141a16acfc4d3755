"""Opens the graph data that a configuration names."""

from __future__ import annotations

import numpy as np

from nextscale.plugin import ConditionSpec, DataError, DataSplits
from nextscale_graph.conditions import conditions_of
from nextscale_graph.config import GraphDataConfig
from nextscale_graph.graphs import GraphBatch
from nextscale_graph.readers import read_source
from nextscale_graph.readers.rules import Rules
from nextscale_graph.source import GraphSource, describe

LARGEST_SIZE = 100_000
"""Upper bound of the condition ``size``; the tokenizer's ``max_nodes`` is tighter."""


def open_graphs(config: GraphDataConfig) -> DataSplits:
    """Open the data and its splits. Raises DataError if there is no data or a split would be empty."""
    raw = read_source(config.source, config.root, rules=Rules.of(config))
    properties = conditions_of(raw.graphs, config)
    graphs = properties.assign(raw.graphs)
    parts: dict[str, list[GraphBatch]] = {"train": [], "val": [], "test": []}
    splits = raw.splits or ["train"] * len(graphs)
    for graph, split in zip(graphs, splits, strict=True):
        parts[split].append(graph)
    for name, share in (("test", config.test), ("val", config.validation)):
        if not parts[name] and share > 0:
            parts[name], parts["train"] = _hold_out(parts["train"], share, config)
    for name in ("train", "val"):
        if not parts[name]:
            raise DataError(f"{config.source}: none of its {len(raw.graphs)} graphs are left for the {name} split")
    description = describe(parts["train"], raw.node_types, raw.edge_types, config.bins)
    description["properties"] = properties.describe()
    description["kind"] = raw.kind if config.kind == "auto" else config.kind
    if description["kind"] == "molecule":
        from nextscale_graph.readers.smiles import check_types

        check_types(raw.node_types, raw.edge_types, config.source)
    largest = max(size for size, _ in description["sizes"])
    for name in ("val", "test"):
        larger = max((int(graph.sizes[0]) for graph in parts[name]), default=0)
        description["largest"] = largest = max(largest, larger)
    return DataSplits(
        GraphSource(parts["train"], properties),
        GraphSource(parts["val"], properties),
        GraphSource(parts["test"], properties) if parts["test"] else None,
        (ConditionSpec(name="size", kind="count", size=LARGEST_SIZE), *properties.specs(parts["train"])),
        description,
    )


def _hold_out(
    graphs: list[GraphBatch], share: float, config: GraphDataConfig
) -> tuple[list[GraphBatch], list[GraphBatch]]:
    """Returns the held-out graphs and the rest."""
    order = np.random.default_rng(config.split_seed).permutation(len(graphs))
    count = max(1, round(share * len(graphs)))
    if count >= len(graphs):
        raise DataError(f"{config.source} holds {len(graphs)} graphs: too few to hold any out for a split")
    return [graphs[i] for i in order[:count]], [graphs[i] for i in order[count:]]
