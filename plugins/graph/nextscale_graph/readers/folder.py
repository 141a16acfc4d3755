"""Folders with one graph per file: edge lists or GraphML. The sub-folders train, val and test are splits."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np

from nextscale.plugin import DataError
from nextscale_graph.graphs import GraphBatch
from nextscale_graph.readers.raw import RawGraphs, checked

LISTS = (".edgelist", ".edges", ".txt", ".csv")
SUBFOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_folder(folder: Path) -> RawGraphs:
    """Every graph file below ``folder``.

    Raises:
        DataError: there are no graph files, or a graph cannot be read, is directed, or is not simple.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (*LISTS, ".graphml"))
    if not files:
        raise DataError(f"{folder} holds no graphs: it should hold edge lists ({', '.join(LISTS)}) or .graphml files")
    splits = [next((SUBFOLDERS[p.name] for p in path.parents if p.name in SUBFOLDERS), "") for path in files]
    if any(splits) and not all(splits):
        raise DataError(f"{folder}: {files[splits.index('')]} is in none of the sub-folders train, val and test")
    return RawGraphs([read_graph(path) for path in files], splits if all(splits) else None)


def read_graph(path: Path) -> GraphBatch:
    """One graph from an edge list or GraphML. An edge list has two columns of node names; further columns and text
    after ``#`` are ignored. Node attributes are ignored.

    Raises:
        DataError: see ``read_folder``.
    """
    if path.suffix.lower() == ".graphml":
        return _read_graphml(path)
    pairs: list[tuple[str, str]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        words = line.split("#")[0].replace(",", " ").split()
        if not words:
            continue
        if len(words) < 2:
            raise DataError(f"{path}, line {number}: {line.strip()!r} should be two nodes, the ends of an edge")
        pairs.append((words[0], words[1]))
    ids = {name: i for i, name in enumerate(dict.fromkeys(name for pair in pairs for name in pair))}
    edges = np.array([(ids[a], ids[b]) for a, b in pairs], np.int64).reshape(-1, 2).T
    return checked(str(path), len(ids), edges)


def _read_graphml(path: Path) -> GraphBatch:
    try:
        graph = nx.read_graphml(path)
    except Exception as error:  # networkx passes on whatever its XML parser and converters raise
        raise DataError(f"{path} cannot be read as GraphML: {error}") from None
    if graph.is_directed():
        raise DataError(f"{path} is directed: only undirected graphs are modelled (edgedefault should be undirected)")
    ids = {name: i for i, name in enumerate(graph.nodes)}
    edges = np.array([(ids[edge[0]], ids[edge[1]]) for edge in graph.edges], np.int64).reshape(-1, 2).T
    return checked(str(path), len(ids), edges)
