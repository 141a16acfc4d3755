"""Graphs in one .npz file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from nextscale.plugin import DataError
from nextscale_graph.readers.raw import SPLITS, RawGraphs, checked

REQUIRED = ("num_nodes", "edges", "edge_offsets")
KINDS = ("planar", "tree", "sbm")


def read_npz(path: Path) -> RawGraphs:
    """Required arrays: ``num_nodes`` G; ``edges`` E 2 (ids within their graph, each edge once); ``edge_offsets`` G + 1
    (graph i owns edges[edge_offsets[i]:edge_offsets[i + 1]]). Optional: ``split`` G (train, val, test), ``node_types``
    and ``edge_types`` (integers, concatenated), ``node_type_names`` and ``edge_type_names``.

    Raises:
        DataError: an array is missing or has the wrong shape, or a graph is not simple.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from None
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise DataError(f"{path} holds no {missing[0]!r}: graphs need the arrays {', '.join(REQUIRED)}")
    sizes, edges, offsets = (arrays[name].astype(np.int64) for name in REQUIRED)
    if len(sizes) == 0:
        raise DataError(f"{path} holds no graphs")
    if edges.ndim != 2 or edges.shape[1] != 2 or len(offsets) != len(sizes) + 1 or offsets[-1] != len(edges):
        raise DataError(
            f"{path}: edges {edges.shape} and edge_offsets {offsets.shape} do not fit {len(sizes)} graphs: "
            "edges should be E x 2, edge_offsets should be one longer than num_nodes and end in E"
        )
    nodes, starts = arrays.get("node_types"), np.concatenate([[0], np.cumsum(sizes)])
    types = arrays.get("edge_types")
    graphs = [
        checked(
            f"{path}: graph {i}",
            int(sizes[i]),
            edges[offsets[i] : offsets[i + 1]].T,
            None if nodes is None else nodes[starts[i] : starts[i + 1]],
            None if types is None else types[offsets[i] : offsets[i + 1]],
        )
        for i in range(len(sizes))
    ]
    splits = _splits(path, arrays, len(sizes))
    kind = path.stem if path.stem in KINDS else "none"
    return RawGraphs(graphs, splits, _names(arrays, "node"), _names(arrays, "edge"), kind)


def _splits(path: Path, arrays: dict[str, np.ndarray], number: int) -> list[str] | None:
    if "split" not in arrays:
        return None
    splits = [str(name) for name in arrays["split"]]
    wrong = sorted(set(splits) - set(SPLITS))
    if wrong or len(splits) != number:
        raise DataError(f"{path}: split should be train, val or test for each graph, got {wrong or len(splits)}")
    return splits


def _names(arrays: dict[str, np.ndarray], of: str) -> list[str]:
    """The names of the types, or their numbers if the file gives no names."""
    if f"{of}_types" not in arrays:
        return []
    if f"{of}_type_names" in arrays:
        return [str(name) for name in arrays[f"{of}_type_names"]]
    types = arrays[f"{of}_types"]
    return [str(number) for number in range(int(types.max()) + 1 if len(types) else 1)]
