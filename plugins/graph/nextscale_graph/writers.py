"""Writes graphs to disk and draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from nextscale.plugin import replacing
from nextscale_graph.attributes import Attribute
from nextscale_graph.graphs import GraphBatch
from nextscale_graph.layout import ancestors, positions
from nextscale_graph.molecules import are_molecules, molecule_picture

CELL = 1.6
"""Inches per drawn graph."""
CAPTION = 7
"""Points: the size of the letters of a caption."""


def write_samples(
    samples: GraphBatch,
    folder: Path,
    description: Mapping[str, Any] | None = None,
    first: int = 0,
    metadata: Sequence[Mapping[str, str]] | None = None,
) -> list[Path]:
    """Write ``NNNNNN.graphml`` for each graph, numbered from ``first`` on. ``data=`` reads the folder.

    Types are written by name where names are known, from the samples or from the ``description`` of the data. Other
    attributes are written as texts and numbers, and so are the properties that samples were drawn for. The
    ``metadata`` of a sample becomes attributes of its graph. Given nodes have the attribute ``given``, their name.
    """
    nodes, edges = _names(samples, description)
    written = []
    for i, graph in enumerate(samples.to_networkx()):
        for names, attributes in ((nodes, graph.nodes(data=True)), (edges, graph.edges(data=True))):
            for *_, each in attributes:
                if names and "type" in each:
                    each["type"] = names[each["type"]]
        graph.graph |= dict(metadata[i]) if metadata else {}
        path = folder / f"{first + i:06d}.graphml"
        with replacing(path) as partial:
            nx.write_graphml(graph, partial)
        written.append(path)
    return written


def write_npz(samples: GraphBatch, path: Path, description: Mapping[str, Any] | None = None) -> Path:
    """Write all graphs as ``readers.arrays.read_npz`` reads them, with the names of types, all attributes and
    properties, and the kind of the data."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays_of(samples, description))  # type: ignore[arg-type]
    return path


def arrays_of(samples: GraphBatch, description: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz file of these graphs. Those whose names end in ``_type_names``, and ``kind``, are the same
    for all graphs of a data set; the others grow with the graphs."""
    arrays: dict[str, np.ndarray] = {
        "num_nodes": samples.sizes.cpu().numpy(),
        "edges": samples.edges.T.cpu().numpy(),
        "edge_offsets": np.concatenate([[0], samples.edge_counts.cpu().numpy().cumsum()]),
    }
    for of, types, names in zip(
        ("node", "edge"), (samples.node_types, samples.edge_types), _names(samples, description), strict=True
    ):
        if types is not None:
            arrays[f"{of}_types"] = types.cpu().numpy()
            arrays |= {f"{of}_type_names": np.array(names)} if names else {}
    for of in ("node", "edge", "graph"):
        values = getattr(samples, f"{of}_values")
        if values is None:
            continue
        for i, attribute in enumerate(getattr(samples, f"{of}_attributes")):
            if np.isfinite(values[:, i]).all():  # properties that were not asked for are unknown
                arrays[f"{of}:{attribute.name}"] = _column(attribute, values[:, i])
    kind = (description or {}).get("kind", "none")
    return arrays | ({} if kind == "none" else {"kind": np.array(kind)})


def _column(attribute: Attribute, stored: np.ndarray) -> np.ndarray:
    """The values as texts, booleans, integers or floats; the kind of the array says which."""
    kinds = {"text": np.str_, "bool": np.bool_, "integer": np.int64, "real": np.float64}
    return np.array(attribute.values(stored), kinds[attribute.kind])


def _names(samples: GraphBatch, description: Mapping[str, Any] | None) -> tuple[Sequence[str], Sequence[str]]:
    known = description or {}
    return samples.node_names or known.get("node_types", ()), samples.edge_names or known.get("edge_types", ())


def write_grid(
    samples: GraphBatch,
    path: Path,
    columns: int | None = None,
    captions: Sequence[str] | None = None,
    description: Mapping[str, Any] | None = None,
) -> Path:
    """A sheet of drawn graphs, at most 100, each with its caption above. Given nodes have a ring. If RDKit is there,
    molecules are drawn as chemists draw them, and invalid ones as plain graphs that say so."""
    shown = samples[: min(100, len(samples))]
    columns = columns or max(1, math.ceil(math.sqrt(len(shown))))
    names = captions or [""] * len(shown)
    drawn = [(graph, _positions(shown[[i]]), names[i]) for i, graph in enumerate(shown.to_networkx())]
    if are_molecules(description):
        for i, (graph, *_) in enumerate(drawn):
            graph.graph["picture"] = molecule_picture(shown[[i]], *_names(shown, description))
    return _draw([drawn[i : i + columns] for i in range(0, len(drawn), columns)], path)


def write_film(
    steps: list[GraphBatch], path: Path, captions: Sequence[str] | None = None, rows: int = 4, columns: int = 10
) -> Path:
    """One row per graph: how it grows, from left to right. A node is drawn where its children will be. Steps without
    new nodes are left out, then evenly spaced ones are kept. Each graph has the caption of its step and its size."""
    drawn = []
    for i in range(min(rows, len(steps[-1]))):
        stages = [step[[i]] for step in steps]
        grown = next((k for k in reversed(range(len(stages))) if stages[k].lineage is not None), len(stages) - 1)
        final, row = _positions(stages[grown]), []
        for k in _shown(stages, grown, columns):
            # What follows the grown graph, such as the original beside it, has an order and a layout of its own.
            places = _earlier(stages[k], stages[grown], final) if k <= grown else _positions(stages[k])
            nodes, edges = int(stages[k].sizes[0]), stages[k].edges.shape[1]
            name = "" if captions is None else f"{captions[k]}\n"
            row.append((stages[k].to_networkx()[0], places, f"{name}{_count(nodes, 'node')}, {_count(edges, 'edge')}"))
        drawn.append(row)
    return _draw(drawn, path)


def _shown(stages: list[GraphBatch], grown: int, columns: int) -> list[int]:
    """Which stages of a graph to draw: the first, those up to ``grown`` with new nodes, ``grown``, all that follow."""
    sizes = [int(stage.sizes[0]) for stage in stages[: grown + 1]]
    # The last stage with new nodes lacks edges only: ``grown`` takes its place.
    new = [k for k in range(1, grown + 1) if sizes[k] != sizes[k - 1]][:-1]
    kept = list(dict.fromkeys([0, *new, grown])) if len(set(sizes)) > 1 else [grown]
    rest = list(range(grown + 1, len(stages)))
    chosen = np.unique(np.linspace(0, len(kept) - 1, min(columns - len(rest), len(kept))).round().astype(int))
    return [*(kept[k] for k in chosen), *rest]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def layout(graph: nx.Graph) -> dict[Any, np.ndarray]:
    """Positions of a graph's nodes by name (``layout.positions``)."""
    ids = {node: i for i, node in enumerate(graph)}
    edges = np.array([(ids[a], ids[b]) for a, b in graph.edges], np.int64).reshape(-1, 2).T
    return dict(zip(graph, positions(len(graph), edges), strict=True))


def _positions(graph: GraphBatch) -> np.ndarray:
    return positions(int(graph.sizes[0]), graph.edges.cpu().numpy())


def _earlier(stage: GraphBatch, final: GraphBatch, places: np.ndarray) -> np.ndarray:
    """Positions of an earlier stage, from those of the final graph."""
    if final.lineage is None:  # graphs that were not grown
        return _positions(stage)
    # A graph that is to be completed is numbered in its own order.
    own = np.arange(int(stage.sizes[0])) if stage.lineage is None else stage.lineage.cpu().numpy()
    return ancestors(places, final.lineage.cpu().numpy(), own)


def _draw(rows: list[list[tuple[nx.Graph, np.ndarray, str]]], path: Path) -> Path:
    """Draw graphs at the given positions, with captions. All of a row have the same scale if the last has the widest
    layout."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(CELL * columns, CELL * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, graphs in zip(axes, rows, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, (graph, places, caption) in zip(row, graphs, strict=False):
            axis.set_title(caption, fontsize=CAPTION, parse_math=False)
            picture = graph.graph.get("picture")
            if picture is not None:
                axis.imshow(picture, interpolation="antialiased")
                continue
            if "picture" in graph.graph:
                axis.text(0.5, 0.0, "invalid", transform=axis.transAxes, color="tab:red", fontsize=7, ha="center")
            rings: Any = ["black" if "given" in graph.nodes[node] else "none" for node in graph]
            inner = [edge for edge in graph.edges if all("given" in graph.nodes[node] for node in edge)]
            kinds: Any = [graph.nodes[node].get("type", 0) for node in graph]
            nx.draw_networkx(
                graph, dict(enumerate(places)), ax=axis, with_labels=False, node_size=400 / (len(graph) + 8), width=0.6,
                node_color=kinds, cmap="tab10", vmin=0, vmax=9, edge_color="0.4",
                edgecolors=rings, linewidths=1.2,
            )  # fmt: skip
            nx.draw_networkx_edges(graph, dict(enumerate(places)), edgelist=inner, ax=axis, width=1.4, node_size=0)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=100, format="png")
    return path
