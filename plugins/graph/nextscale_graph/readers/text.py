"""One graph from a text file: finds out which of the usual formats it has."""

from __future__ import annotations

import io
import re
from pathlib import Path

from nextscale.plugin import DataError, read_text, reading, shown_path
from nextscale_graph.readers.columns import is_adjacency, read_adjacency, read_edges
from nextscale_graph.readers.lines import read_rows, split_lines
from nextscale_graph.readers.raw import Builder, FileGraph, check_size, refuse_directed
from nextscale_graph.readers.rules import Rules

ADJACENCY = (".adjlist", ".adj")
FOREIGN = {
    "<": "XML: GraphML files are called .graphml",
    "{": "JSON, which is not read: write an edge list or GraphML",
    "[": "JSON, which is not read: write an edge list or GraphML",
    "dl ": "UCINET's DL, which is not read: export it to Pajek",
    "@": "LEMON's format, which is not read: write an edge list or GraphML",
    "graph [": "GML: call the file .gml",
    "graph {": "DOT, which is not read: write an edge list or GraphML",
    "digraph": "DOT, which is not read: write an edge list or GraphML",
    ">>": "graph6 or sparse6, which is not read: write an edge list",
}


def read_text_graph(path: Path, rules: Rules) -> FileGraph:
    """An edge list, an adjacency list (``.adjlist``, or a colon after the first node of each line), Matrix Market,
    DIMACS or Pajek. Comments begin with ``#``, ``%``, ``//`` or ``;``.

    Raises:
        DataError: the file is in none of these formats; the message names the line.
    """
    text = read_text(path, rules.limits)
    lines = max(text.count("\n"), text.count("\r"))
    if lines > rules.limits.nodes + rules.limits.edges + 1000:  # with some for comments; each line takes much memory
        raise DataError(
            f"{shown_path(path)} has {lines:,} lines, more than data.limits.nodes and data.limits.edges allow together"
        )
    if text.lstrip().startswith("%%MatrixMarket"):
        return _read_matrix(text.lstrip(), path, rules)
    data, comments = split_lines(text, path)
    if not data:
        return Builder(path, rules).graph()
    line, first = data[0]
    problem = next((i for i, (_, text) in enumerate(data) if re.match(r"p\s+\w+\s+\d+\s+\d+", text)), None)
    if problem is not None and all(re.match(r"c(\s|$)", text) for _, text in data[:problem]):
        return _read_dimacs(data[problem:], path, rules)
    if re.match(r"\*(network|vertices)\b", first, re.IGNORECASE):
        return _read_pajek(data, path, rules)
    foreign = next((what for begin, what in FOREIGN.items() if first.lower().startswith(begin)), None)
    if foreign or first.startswith("*"):
        raise DataError(f"{shown_path(path)}, line {line}: this is {foreign or 'no format that is read'}")
    rows = read_rows(data, path)
    if path.suffix.lower() in ADJACENCY or is_adjacency(rows):
        return read_adjacency(rows, path, rules)
    return read_edges(rows, comments, path, rules)


def _read_matrix(text: str, path: Path, rules: Rules) -> FileGraph:
    """Matrix Market: a symmetric matrix. Its values are the weights of edges, unless it is a pattern."""
    from scipy.io import mminfo, mmread
    from scipy.sparse import coo_array

    what = "Matrix Market file"
    with reading(path, what):
        rows, columns, entries, form, field, _ = mminfo(io.BytesIO(text.encode()))
    if rows != columns or form != "coordinate":
        raise DataError(f"{shown_path(path)}: a graph is a square matrix in coordinates, not {rows} x {columns} {form}")
    check_size(shown_path(path), rows, entries // 2, rules.limits)
    with reading(path, what):
        matrix = coo_array(mmread(io.BytesIO(text.encode())))
    pairs = list(zip(matrix.row.tolist(), matrix.col.tolist(), strict=True))
    if set(pairs) == {(b, a) for a, b in pairs}:
        chosen = [i for i, (a, b) in enumerate(pairs) if a <= b]
    else:
        refuse_directed(f"{shown_path(path)}: the matrix is not symmetric, so the graph", rules)
        chosen = list(range(len(pairs)))
    weights = [] if field not in ("real", "integer") else matrix.data.tolist()
    edges = [(pairs[i][0] + 1, pairs[i][1] + 1, None) for i in chosen]
    return _numbered(rows, edges, path, rules, [{"weight": weights[i]} for i in chosen] if weights else None)


def _read_dimacs(data: list[tuple[int, str]], path: Path, rules: Rules) -> FileGraph:
    """``p FORMAT NODES EDGES``, and a line ``e A B`` for each edge. Arcs (``a A B``) make it a directed graph."""
    line, first = data[0]
    nodes, announced = (int(word) for word in first.split()[2:4])
    edges, arcs = [], False
    for number, text in data[1:]:
        word = text.split()
        if word[0] in ("c", "n", "x", "d", "v"):  # comments, and properties of nodes
            continue
        if word[0] == "a" and "direction" in rules.clean:
            rules.cleaned["direction"] += not arcs
            word, arcs = ["e", *word[1:]], True
        if word[0] != "e":
            raise DataError(
                f"{shown_path(path)}, line {number}: {text[:80]!r} should be 'e A B', an undirected edge"
                + (" (data.clean=direction forgets the direction)" if word[0] == "a" else "")
            )
        edges.append((*_ends(word[1:], text, number, path), number))
    if len(edges) not in (announced, 2 * announced):  # some files count each edge twice, others list it twice
        raise DataError(f"{shown_path(path)}, line {line}, announces {announced} edges, but the file has {len(edges)}")
    return _numbered(nodes, edges, path, rules)


def _read_pajek(data: list[tuple[int, str]], path: Path, rules: Rules) -> FileGraph:
    """``*Vertices N``, and edges below ``*Edges`` or lists of neighbours below ``*Edgeslist``. Labels are ignored."""
    nodes, edges, section = 0, [], ""
    for number, text in data:
        if text.startswith("*"):
            section = text.split()[0].lower()
            if section == "*vertices":
                found = re.fullmatch(r"\*\w+\s+(\d+)", text)
                if found is None:
                    raise DataError(f"{shown_path(path)}, line {number}: {text[:80]!r} should be '*Vertices N'")
                nodes = int(found[1])
            if section in ("*arcs", "*arcslist") and "direction" in rules.clean:
                refuse_directed(f"{shown_path(path)}, line {number}: the graph", rules)
        elif section in ("*edges", "*edgeslist") or (section in ("*arcs", "*arcslist") and "direction" in rules.clean):
            words = text.split()
            for end in words[1:2] if section in ("*edges", "*arcs") else words[1:]:
                edges.append((*_ends([words[0], end], text, number, path), number))
            if len(words) < 2:
                _ends(words, text, number, path)
        elif section != "*vertices":
            raise DataError(
                f"{shown_path(path)}, line {number}: only *Vertices and *Edges are read, not {section}"
                + (" (data.clean=direction reads arcs as edges)" if section.startswith("*arcs") else "")
            )
    return _numbered(nodes, edges, path, rules)


def _ends(words: list[str], text: str, line: int, path: Path) -> tuple[int, int]:
    if len(words) < 2 or not all(word.isdecimal() and len(word) < 19 for word in words[:2]):
        raise DataError(f"{shown_path(path)}, line {line}: {text[:80]!r} should be two numbers of nodes, from 1")
    return int(words[0]), int(words[1])


def _numbered(
    nodes: int,
    edges: list[tuple[int, int, int]] | list[tuple[int, int, None]],
    path: Path,
    rules: Rules,
    values: list[dict[str, float]] | None = None,
) -> FileGraph:
    """A graph whose nodes are numbered from 1, isolated ones too."""
    check_size(shown_path(path), nodes, 0, rules.limits)
    builder = Builder(path, rules)
    for i in range(nodes):
        builder.node(str(i + 1))
    for i, (a, b, line) in enumerate(edges):
        if not 1 <= min(a, b) <= max(a, b) <= nodes:
            raise DataError(f"{builder.at(line)} has an edge {a}-{b}; its {nodes} nodes are numbered from 1")
        builder.edge(str(a), str(b), line, None if values is None else values[i])
    return builder.graph()
