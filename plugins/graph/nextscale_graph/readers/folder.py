"""Folders with one graph per file. The sub-folders train, val and test are splits."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nextscale.plugin import SPLIT_NAMES, DataError, NextscaleWarning, shown_path
from nextscale.plugin import read_folder as read_splits
from nextscale_graph.config import GraphLimitsConfig
from nextscale_graph.graphs import GraphBatch
from nextscale_graph.readers.raw import FileGraph, RawGraphs
from nextscale_graph.readers.text import ADJACENCY, read_text_graph

LISTS = (".edgelist", ".edges", ".txt", ".csv", ".tsv", *ADJACENCY, ".mtx", ".col", ".dimacs", ".net")
SUFFIXES = (*LISTS, ".graphml", ".gml")
UNREAD = (".gexf", ".dot", ".gv", ".g6", ".s6", ".json", ".graph", ".pkl", ".pickle", ".gz", ".bz2", ".xz", ".zip")
"""Graphs, most likely, that are not read: a warning says so."""
PROSE = re.compile(r"(readme|licen[cs]e|copying|notice|authors|citation|changelog|changes).*", re.IGNORECASE)
TABLES = re.compile(r"(meta|metadata|index|labels?|classes|splits?|requirements)", re.IGNORECASE)
"""What often lies beside graphs, under the suffix of an edge list."""


def read_folder(folder: Path, limits: GraphLimitsConfig | None = None) -> RawGraphs:
    """Every graph below ``folder``, in the order of paths. Folders other than train, val and test mean nothing.

    Raises:
        DataError: there are no graphs, or a graph cannot be read, is directed, or is not simple.
    """
    limits = limits or GraphLimitsConfig()
    found = read_splits(folder, is_graph, f"graphs ({', '.join(SUFFIXES)})")
    files: list[tuple[Path, str]] = []
    for split, part in found.items():
        name = {"validation": "val"}.get(split, split)
        files += [(path, name) for path in sorted(part.paths)]
        _warn_of_others(part.others)
        _refuse_deeper_splits(folder, part.paths, 0 if len(found) == 1 else 1)
    _refuse_twins([path for path, _ in files])
    graphs = [_read(path, limits) for path, _ in files]
    node_types = _names([one.node_types for one in graphs], [path for path, _ in files], "node")
    edge_types = _names([one.edge_types for one in graphs], [path for path, _ in files], "edge")
    batches = [one.batch(node_types, edge_types) for one in graphs]
    return RawGraphs(batches, [split for _, split in files] if len(found) > 1 else None, node_types, edge_types)


def read_graph(path: Path, limits: GraphLimitsConfig | None = None) -> GraphBatch:
    """One graph from a text file (``text.read_text_graph``), GraphML or GML, with the names of its nodes (``given``).

    Raises:
        DataError: as ``read_folder``.
    """
    graph = _read(path, limits or GraphLimitsConfig())
    node_types, edge_types = (sorted(set(one or ()), key=_by_number) for one in (graph.node_types, graph.edge_types))
    batch = RawGraphs([graph.batch(node_types, edge_types)], None, node_types, edge_types).graphs[0]
    return replace(batch, given=tuple(name or str(i) for i, name in enumerate(graph.names)))


def is_graph(path: Path) -> bool:
    """Whether a path is called like a graph. KONECT calls its edge lists ``out.NAME``."""
    name = path.name.lower()
    if PROSE.fullmatch(path.stem) or TABLES.fullmatch(path.stem) or name.startswith(("meta.", "readme.")):
        return False
    return (name.endswith(SUFFIXES) or name.startswith("out.")) and not path.is_dir()


def _read(path: Path, limits: GraphLimitsConfig) -> FileGraph:
    suffix = path.suffix.lower()
    if suffix in (".graphml", ".gml"):
        from nextscale_graph.readers.markup import read_gml, read_graphml

        return (read_graphml if suffix == ".graphml" else read_gml)(path, limits)
    return read_text_graph(path, limits)


def _names(types: Sequence[list[str] | None], paths: Sequence[Path], of: str) -> list[str]:
    """The names of all types; none if the graphs have no types. A graph without edges has types of edges or not."""
    known = [one for one in types if one]
    if not known:
        return []
    if None in types:
        without, having = paths[types.index(None)], paths[next(i for i, one in enumerate(types) if one)]
        raise DataError(f"{shown_path(without)} has no {of} types, but {having.name} has: give them to all, or to none")
    return sorted({name for one in known for name in one}, key=_by_number)


def _by_number(name: str) -> tuple[bool, int, str]:
    number = name.isdecimal() and len(name) < 1000
    return not number, int(name) if number else 0, name


def _refuse_deeper_splits(folder: Path, paths: Sequence[Path], depth: int) -> None:
    """Splits below ``depth`` folders would be read as one."""
    inner = {part for path in paths for part in path.relative_to(folder).parts[depth:-1]}
    splits = {SPLIT_NAMES.get(part.lower()): part for part in sorted(inner)}
    if "train" in splits and len(splits.keys() - {None}) > 1:
        shown = ", ".join(part for split, part in splits.items() if split)
        raise DataError(f"{shown_path(folder)} has the folders {shown} further down: put them directly inside it")


def _refuse_twins(paths: Sequence[Path]) -> None:
    """The same graph in two formats would be two graphs, one of them perhaps in training and one in testing."""
    seen: dict[Path, Path] = {}
    for path in paths:
        twin = seen.setdefault(path.with_suffix(""), path)
        if twin != path and {twin.suffix, path.suffix} - set(LISTS):
            raise DataError(f"{shown_path(path)} and {twin.name}: the same graph in two formats? Keep one of them")


def _warn_of_others(others: Sequence[Path]) -> None:
    unread = [
        path for path in others if path.name.lower().endswith((*UNREAD, *SUFFIXES)) and not PROSE.match(path.name)
    ]
    if unread:
        more = f" and {len(unread) - 1} more files" if len(unread) > 1 else ""
        warnings.warn(f"{shown_path(unread[0])}{more} beside the graphs: not read", NextscaleWarning, stacklevel=3)
