"""Graphs in one .npz file."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

import numpy as np

from nextscale.plugin import SPLIT_NAMES, DataError, array_names, read_arrays, shown_path, unknown
from nextscale_graph.attributes import Attribute
from nextscale_graph.config import GraphLimitsConfig
from nextscale_graph.readers.assemble import tabulate_properties
from nextscale_graph.readers.raw import KINDS, SPLITS, RawGraphs, checked
from nextscale_graph.readers.rules import Rules
from nextscale_graph.readers.tables import tabulate

REQUIRED = ("num_nodes", "edges", "edge_offsets")
OPTIONAL = ("split", "node_types", "edge_types", "node_type_names", "edge_type_names", "kind")


PREFIXES = ("node:", "edge:", "graph:")


def read_npz(path: Path, limits: GraphLimitsConfig | None = None, rules: Rules | None = None) -> RawGraphs:
    """Required arrays: ``num_nodes`` G; ``edges`` E 2 (ids within their graph, each edge once); ``edge_offsets`` G + 1
    (graph i owns edges[edge_offsets[i]:edge_offsets[i + 1]]). Optional: ``split`` G (train, val, test), ``node_types``
    and ``edge_types`` (integers, concatenated), ``node_type_names`` and ``edge_type_names``, and ``kind``, the name of
    a validity test. Attributes are arrays called ``node:NAME`` and ``edge:NAME`` (numbers, booleans or texts,
    concatenated), properties ``graph:NAME`` (G), or ``y`` (G, or G P for ``y_0``, ``y_1`` ...).

    Raises:
        DataError: an array is missing, has the wrong shape or kind of numbers, or contradicts another; or a graph is
            too large, or not simple.
    """
    rules = rules or Rules(limits or GraphLimitsConfig())
    limits = rules.limits
    arrays = read_arrays(path, lambda name: name in (*REQUIRED, *OPTIONAL) or _is_attribute(name, rules), limits)
    shown = shown_path(path)
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise DataError(f"{shown} holds no {missing[0]!r}: graphs need the arrays {', '.join(REQUIRED)}")
    _check_spelling(path, arrays)
    sizes, edges, offsets = (_integers(f"{shown}: {name}", arrays[name]) for name in REQUIRED)
    _check_bounds(shown, sizes, edges, offsets, limits)
    of_nodes = np.concatenate([[0], np.cumsum(sizes)])
    nodes, node_names = _types(shown, arrays, "node", int(of_nodes[-1]), limits)
    types, edge_names = _types(shown, arrays, "edge", len(edges), limits)
    if not rules.wants("type"):
        nodes, types, node_names, edge_names = None, None, [], []
    node_attributes, node_values = _attributes(shown, arrays, "node", int(of_nodes[-1]), rules)
    edge_attributes, edge_values = _attributes(shown, arrays, "edge", len(edges), rules)
    properties, table = _properties(shown, arrays, len(sizes), rules)
    graphs = [
        checked(
            f"{shown}: graph {i}",
            int(sizes[i]),
            edges[offsets[i] : offsets[i + 1]].T,
            None if nodes is None else nodes[of_nodes[i] : of_nodes[i + 1]],
            None if types is None else types[offsets[i] : offsets[i + 1]],
            None if node_values is None else node_values[of_nodes[i] : of_nodes[i + 1]],
            None if edge_values is None else edge_values[offsets[i] : offsets[i + 1]],
            rules,
        )
        for i in range(len(sizes))
    ]
    known = {
        "node_attributes": node_attributes,
        "edge_attributes": edge_attributes,
        "graph_attributes": properties,
    }
    graphs = [
        replace(graph, graph_values=None if table is None else table[i : i + 1], **known)
        for i, graph in enumerate(graphs)
    ]
    return RawGraphs(graphs, _splits(shown, arrays, len(sizes)), node_names, edge_names, _kind(path, arrays))


def _is_attribute(name: str, rules: Rules) -> bool:
    of, _, own = name.partition(":")
    if of in ("node", "edge"):
        return rules.wants(own)
    return (of == "graph" or name == "y") and rules.properties != ()


def _attributes(
    shown: str, arrays: dict[str, np.ndarray], of: str, number: int, rules: Rules
) -> tuple[tuple[Attribute, ...], np.ndarray | None]:
    """The attributes of all nodes or edges, and their values, N A."""
    columns = {name.removeprefix(f"{of}:"): array for name, array in arrays.items() if name.startswith(f"{of}:")}
    for name, array in columns.items():
        _check_column(f"{shown}: {of}:{name}", array, number)
    found, rows = tabulate([columns], [number], lambda _, j: f"{shown}: {of} {j}", of, rules, names_differ=False)
    return found, None if rows is None else rows[0]


def _check_column(where: str, array: np.ndarray, number: int) -> None:
    if array.shape != (number,) or array.dtype.kind not in "iufbUS":
        raise DataError(
            f"{where} should be {number} numbers, booleans or texts, not {array.dtype} of shape {array.shape}"
        )


def _properties(
    shown: str, arrays: dict[str, np.ndarray], number: int, rules: Rules
) -> tuple[tuple[Attribute, ...], np.ndarray | None]:
    columns = {name.removeprefix("graph:"): array for name, array in arrays.items() if name.startswith("graph:")}
    if "y" in arrays:
        y = arrays["y"]
        table = y.reshape(len(y), -1) if y.ndim else y.reshape(1, 1)
        names = ["y"] if table.shape[1] == 1 else [f"y_{i}" for i in range(table.shape[1])]
        columns |= dict(zip(names, table.T, strict=True))
    for name, array in columns.items():
        _check_column(f"{shown}: the property {name}", array, number)
    lists = {name: texts(array) if array.dtype.kind == "S" else array.tolist() for name, array in columns.items()}
    rows = [{name: values[i] for name, values in lists.items()} for i in range(number)]
    return tabulate_properties(rows, [f"{shown}: graph {i}" for i in range(number)], rules)


def _check_spelling(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A misspelt ``splits`` would let test graphs into training without a word."""
    for name in array_names(path):
        close = difflib.get_close_matches(name.lower(), [*REQUIRED, *OPTIONAL], n=1, cutoff=0.85)
        if name not in (*REQUIRED, *OPTIONAL) and not name.startswith(PREFIXES) and close and close[0] not in arrays:
            raise DataError(f"{shown_path(path)}: {unknown('array', name, [*REQUIRED, *OPTIONAL])}")


def _integers(where: str, array: np.ndarray) -> np.ndarray:
    """As int64. Floating-point numbers may stand for integers, fractions may not."""
    if array.dtype.kind not in "iuf":
        raise DataError(f"{where} should be integers, not {array.dtype}")
    if array.dtype.kind == "f":
        wrong = ~(np.abs(array) < 2**53) | (array != np.floor(array))  # also where it is not a number
        if wrong.any():
            raise DataError(f"{where} should be integers, but holds {array[wrong][0]}")
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise DataError(f"{where} holds {array.max()}, which is out of range")
    return array.astype(np.int64, copy=False)


def _check_bounds(
    shown: str, sizes: np.ndarray, edges: np.ndarray, offsets: np.ndarray, limits: GraphLimitsConfig
) -> None:
    """Raises DataError where the shapes and numbers of the required arrays do not fit each other or the limits."""
    if sizes.ndim != 1 or offsets.ndim != 1 or edges.ndim != 2 or edges.shape[1] != 2 or len(offsets) != len(sizes) + 1:
        raise DataError(
            f"{shown}: num_nodes {sizes.shape}, edges {edges.shape} and edge_offsets {offsets.shape} do not fit: "
            "num_nodes should be G, edges E x 2, and edge_offsets G + 1"
        )
    if len(sizes) == 0:
        raise DataError(f"{shown} holds no graphs")
    if len(sizes) > limits.graphs:
        raise DataError(f"{shown} holds {len(sizes):,} graphs, more than data.limits.graphs={limits.graphs:,}")
    if offsets[0] != 0 or offsets[-1] != len(edges):
        raise DataError(
            f"{shown}: edge_offsets begins at {offsets[0]} and ends at {offsets[-1]}; it should begin at 0 and end at "
            f"{len(edges)}, the number of edges"
        )
    counts = np.diff(offsets)
    for wrong, what in (
        (counts < 0, "has edge_offsets that fall: they should say where the edges of each graph begin, in order"),
        (sizes < 1, "has no nodes: leave it out"),
        (sizes > limits.nodes, f"has more nodes than data.limits.nodes={limits.nodes:,}"),
        (counts > limits.edges, f"has more edges than data.limits.edges={limits.edges:,}"),
    ):
        if wrong.any():
            raise DataError(f"{shown}: graph {int(np.argmax(wrong))} {what}")


def _types(
    shown: str, arrays: dict[str, np.ndarray], of: str, number: int, limits: GraphLimitsConfig
) -> tuple[np.ndarray | None, list[str]]:
    """Types of all nodes or edges, and their names: their numbers if the file gives none."""
    names = arrays.get(f"{of}_type_names")
    if names is not None and (names.ndim != 1 or len(set(names.tolist())) < len(names)):
        raise DataError(f"{shown}: {of}_type_names should be one list of different names")
    if f"{of}_types" not in arrays:
        if names is not None:
            raise DataError(f"{shown} holds {of}_type_names but no {of}_types")
        return None, []
    types = _integers(f"{shown}: {of}_types", arrays[f"{of}_types"])
    if types.shape != (number,):
        raise DataError(f"{shown}: {of}_types has shape {types.shape}; it should have one number per {of}, {number}")
    highest = int(types.max(initial=0))
    most = limits.classes if names is None else len(names)
    if types.min(initial=0) < 0 or highest >= most:
        wrong = types[(types < 0) | (types >= most)][0]
        raise DataError(f"{shown}: {of}_types holds {wrong}; types should be 0 to {most - 1}")
    if names is None:
        return types, [str(i) for i in range(highest + 1)]
    return types, texts(names)


def texts(array: np.ndarray) -> list[str]:
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in array.tolist()]


def _splits(shown: str, arrays: dict[str, np.ndarray], number: int) -> list[str] | None:
    if "split" not in arrays:
        return None
    if arrays["split"].shape != (number,):
        raise DataError(
            f"{shown}: split has shape {arrays['split'].shape}; it should name the split of {number} graphs"
        )
    known = {name: {"validation": "val"}.get(split, split) for name, split in SPLIT_NAMES.items()}
    splits = [known.get(name, name) for name in texts(arrays["split"])]
    wrong = sorted(set(splits) - set(SPLITS))
    if wrong:
        raise DataError(f"{shown}: split should be train, val or test for each graph, not {wrong[0]!r}")
    return splits


def _kind(path: Path, arrays: dict[str, np.ndarray]) -> str:
    if arrays.get("kind") is None:
        return path.stem if path.stem in KINDS[:3] else "none"
    kind = texts(arrays["kind"].reshape(-1))
    if len(kind) != 1 or kind[0] not in (*KINDS, "none"):
        raise DataError(f"{shown_path(path)}: kind should be one of {', '.join(KINDS)} and none, not {kind[:3]}")
    return kind[0]
