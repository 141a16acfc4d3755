"""What ``nextscale train --minutes`` proposes for graphs."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np

from nextscale.plugin import DataSplits, Proposal, some_rows
from nextscale_graph.source import GraphSource

SIZES = ((3, 48, 0), (4, 64, 1500), (6, 64, 6000), (6, 96, 12000))
"""Layers and width of the stem, and the steps that make it worth it."""
DEGREES = 1400
"""Nodes and ends of edges in a batch, about."""
LOOKED_AT = 32
"""Graphs whose structure is looked at."""
TRIANGULATED = 0.6
"""Share of edges with exactly two common neighbours from which graphs count as triangulations."""
MODULAR = 0.4
"""Modularity from which dense graphs count as made of communities."""


def propose_graphs(data: DataSplits) -> list[Proposal]:
    """Stems of several sizes, with the coarsening that suits the structure of the training graphs."""
    assert isinstance(data.train, GraphSource)
    coarsening = suitable_coarsening(data.train)
    length = max(1.0, float(np.mean(data.train.lengths)))
    drawn_for = any(spec.kind != "count" for spec in data.conditions)
    batch = min(64, max(2, 2 ** round(math.log2(DEGREES / length))))
    return [
        Proposal(
            {
                "tokenizer": {
                    "coarsening": coarsening,
                    "ratio": 0.125 if length > 100 else 0.25,
                    "masses": coarsening == "communities",
                    "stem": {"layers": layers},
                },
                "transformer": {
                    "depth": 0,
                    "width": width,
                    "heads": 1,
                    "positions": "rotary",
                    "scale_embedding": False,
                    "attention": "markov",
                    "in_scale_steps": True,
                },
                "training": {
                    "transformer": {
                        "batch_size": batch,
                        "lr": 2e-3 if batch < 32 else 1e-3,
                        "weight_decay": 0.01,
                        "betas": [0.9, 0.99],
                        "clip": 1.0,
                        "precision": "fp32",
                        "cache": False,
                        "condition_drop": 0.1 if drawn_for else 0.0,
                    }
                },
                "sampling": {"guidance": 0.0, "reveal": "groups"},
            },
            steps,
        )
        for layers, width, steps in SIZES
    ]


def suitable_coarsening(source: GraphSource) -> str:
    """interior for triangulations, communities for dense graphs of communities, else cheapest (``coarsen``)."""
    rows = some_rows(len(source), LOOKED_AT, 0)
    graphs = [source.graphs[int(row)].to_networkx()[0] for row in rows]
    graphs = [nx.Graph(graph) for graph in graphs if graph.number_of_edges() > 0]
    if not graphs:
        return "cheapest"
    common = [len(set(graph[a]) & set(graph[b])) for graph in graphs for a, b in graph.edges]
    if float(np.mean(np.array(common) == 2)) > TRIANGULATED and all(nx.check_planarity(graph)[0] for graph in graphs):
        return "interior"
    parted = [nx.community.louvain_communities(graph, seed=0) for graph in graphs]
    modularity = [nx.community.modularity(graph, parts) for graph, parts in zip(graphs, parted, strict=True)]
    degrees = [2 * graph.number_of_edges() / len(graph) for graph in graphs]
    connected = all(nx.is_connected(graph) for graph in graphs)
    dense = float(np.mean(degrees)) > 5 and float(np.mean(common)) > 1
    return "communities" if connected and dense and float(np.mean(modularity)) > MODULAR else "cheapest"
