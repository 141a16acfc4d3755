"""Writes graphs to disk and draws them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from nextscale_graph.graphs import GraphBatch

CELL = 1.6
"""Inches per drawn graph."""


def write_samples(samples: GraphBatch, folder: Path) -> list[Path]:
    """Write ``NNNN.graphml`` for each graph, and all graphs to ``graphs.npz`` in the same folder, which ``data=``
    reads."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for i, graph in enumerate(samples.to_networkx()):
        path = folder / f"{i:04d}.graphml"
        nx.write_graphml(graph, path)
        written.append(path)
    write_npz(samples, folder / "graphs.npz")
    return written


def write_npz(samples: GraphBatch, path: Path) -> Path:
    arrays: dict[str, np.ndarray] = {
        "num_nodes": samples.sizes.cpu().numpy(),
        "edges": samples.edges.T.cpu().numpy(),
        "edge_offsets": np.concatenate([[0], samples.edge_counts.cpu().numpy().cumsum()]),
    }
    for name in ("node_types", "edge_types"):
        types = getattr(samples, name)
        if types is not None:
            arrays[name] = types.cpu().numpy()
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def write_grid(samples: GraphBatch, path: Path, columns: int | None = None) -> Path:
    """A sheet of drawn graphs, at most 100."""
    graphs = samples[: min(100, len(samples))].to_networkx()
    columns = columns or max(1, math.ceil(math.sqrt(len(graphs))))
    return _draw([graphs[i : i + columns] for i in range(0, len(graphs), columns)], path)


def write_film(steps: list[GraphBatch], path: Path, rows: int = 4, columns: int = 10) -> Path:
    """One row per graph: how it grows, from left to right. Steps without new nodes are left out, then evenly spaced
    ones are kept."""
    drawn = []
    for i in range(min(rows, len(steps[-1]))):
        stages = [step[[i]].to_networkx()[0] for step in steps]
        grown = [g for g, before in zip(stages[1:], stages, strict=False) if len(g) != len(before)]
        stages = [stages[0], *grown[:-1], stages[-1]] if grown else stages[-1:]
        chosen = np.unique(np.linspace(0, len(stages) - 1, min(columns, len(stages))).round().astype(int))
        drawn.append([stages[k] for k in chosen])
    return _draw(drawn, path)


def layout(graph: nx.Graph) -> dict[Any, np.ndarray]:
    """Positions by spring forces, the same in every call. Planar graphs and trees have no crossings if the forces find
    such a layout."""
    if len(graph) > 1 and graph.number_of_edges() and nx.is_connected(graph):
        return nx.kamada_kawai_layout(graph)
    return nx.spring_layout(graph, seed=0)


def _draw(rows: list[list[nx.Graph]], path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = max(map(len, rows))
    figure = Figure(figsize=(CELL * columns, CELL * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, graphs in zip(axes, rows, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, graph in zip(row, graphs, strict=False):
            kinds: Any = [graph.nodes[node].get("type", 0) for node in graph]
            nx.draw_networkx(
                graph, layout(graph), ax=axis, with_labels=False, node_size=400 / (len(graph) + 8), width=0.6,
                node_color=kinds, cmap="tab10", vmin=0, vmax=9, edge_color="0.4",
            )  # fmt: skip
    figure.savefig(path, dpi=100)
    return path
