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
from nextscale_graph.readers.assemble import assemble
from nextscale_graph.readers.properties import TABLE, read_properties
from nextscale_graph.readers.raw import FileGraph, RawGraphs
from nextscale_graph.readers.rules import Rules
from nextscale_graph.readers.text import ADJACENCY, read_text_graph

LISTS = (".edgelist", ".edges", ".txt", ".csv", ".tsv", *ADJACENCY, ".mtx", ".col", ".dimacs", ".net")
SUFFIXES = (*LISTS, ".graphml", ".gml")
UNREAD = (".gexf", ".dot", ".gv", ".g6", ".s6", ".json", ".graph", ".pkl", ".pickle", ".gz", ".bz2", ".xz", ".zip")
"""Graphs, most likely, that are not read: a warning says so."""
PROSE = re.compile(r"(readme|licen[cs]e|copying|notice|authors|citation|changelog|changes).*", re.IGNORECASE)
TABLES = re.compile(r"(meta|metadata|index|labels?|properties|classes|splits?|requirements)", re.IGNORECASE)
"""What often lies beside graphs, under the suffix of an edge list."""


def read_folder(folder: Path, limits: GraphLimitsConfig | None = None, rules: Rules | None = None) -> RawGraphs:
    """Every graph below ``folder``, in the order of paths. Folders other than train, val and test mean nothing. A table
    ``properties.csv`` holds properties of graphs (``properties.read_properties``).

    Raises:
        DataError: there are no graphs, or a graph cannot be read, is directed, or is not simple.
    """
    rules = rules or Rules(limits or GraphLimitsConfig())
    found = read_splits(folder, is_graph, f"graphs ({', '.join(SUFFIXES)})")
    files: list[tuple[Path, str]] = []
    for split, part in found.items():
        name = {"validation": "val"}.get(split, split)
        files += [(path, name) for path in sorted(part.paths)]
        _warn_of_others(part.others)
        _refuse_deeper_splits(folder, part.paths, 0 if len(found) == 1 else 1)
    _refuse_twins([path for path, _ in files])
    graphs = [_read(path, rules) for path, _ in files]
    read_properties(folder, [path for path, _ in files], graphs, rules)
    return assemble(graphs, rules, [split for _, split in files] if len(found) > 1 else None)


def read_graph(path: Path, limits: GraphLimitsConfig | None = None, rules: Rules | None = None) -> GraphBatch:
    """One graph from a text file (``text.read_text_graph``), GraphML or GML, with the names of its nodes (``given``).

    Raises:
        DataError: as ``read_folder``.
    """
    rules = rules or Rules(limits or GraphLimitsConfig())
    graph = _read(path, rules)
    return replace(
        assemble([graph], rules).graphs[0], given=tuple(name or str(i) for i, name in enumerate(graph.names))
    )


def is_graph(path: Path) -> bool:
    """Whether a path is called like a graph. KONECT calls its edge lists ``out.NAME``."""
    name = path.name.lower()
    if PROSE.fullmatch(path.stem) or TABLES.fullmatch(path.stem) or name.startswith(("meta.", "readme.")):
        return False
    return (name.endswith(SUFFIXES) or name.startswith("out.")) and not path.is_dir()


def _read(path: Path, rules: Rules) -> FileGraph:
    suffix = path.suffix.lower()
    if suffix in (".graphml", ".gml"):
        from nextscale_graph.readers.markup import read_gml, read_graphml

        return (read_graphml if suffix == ".graphml" else read_gml)(path, rules)
    return read_text_graph(path, rules)


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
        path
        for path in others
        if path.name != TABLE and path.name.lower().endswith((*UNREAD, *SUFFIXES)) and not PROSE.match(path.name)
    ]
    if unread:
        more = f" and {len(unread) - 1} more files" if len(unread) > 1 else ""
        warnings.warn(f"{shown_path(unread[0])}{more} beside the graphs: not read", NextscaleWarning, stacklevel=3)
