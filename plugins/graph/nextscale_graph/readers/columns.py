"""Edge lists and adjacency lists: which columns of a text file are nodes, and what its header says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nextscale.plugin import DataError, shown_path
from nextscale_graph.readers.lines import NUMBER, Row, node_name
from nextscale_graph.readers.raw import Builder, FileGraph, refuse_directed
from nextscale_graph.readers.rules import Rules

SUFFIX = "(node|id|vertex|name)*"
FROM = re.compile(f"(from|source|src|start|head|sender|node1|nodea|id1|vertex1|first|left|u){SUFFIX}")
TO = re.compile(
    f"(to|target|tgt|dst|dest|destination|end|tail|receiver|node2|nodeb|id2|vertex2|second|right|v){SUFFIX}"
)
MOST_COLUMNS = 1000
"""Names of columns that are looked at."""
NO_NODE = ("", "id", "index", "edge", "edgeid", "unnamed0", "row", "no", "nr")
"""Names of a first column that numbers the edges."""
MISSING = ("", "nan", "null", "na", "none")
"""Words that say that a value is missing."""


def read_edges(rows: list[Row], comments: list[tuple[int, str]], path: Path, rules: Rules) -> FileGraph:
    """An edge list: two columns of node names. Further columns are attributes of edges: numbers, true and false, or
    texts. They are named by the first line, if that names the columns; else a number in the third column is the
    ``weight``, and others are called ``column 4`` and so on. Behind an edge may be a dictionary, as networkx writes it.

    A first line that names the columns is recognised. Comments of SNAP and KONECT count where they say that the graph
    is directed or bipartite, or how large it is.

    Raises:
        DataError: a line is no edge, the graph is directed or not simple, or the file is another kind of list.
    """
    rows, (one, other), header = _skip_header(rows, path, rules)
    for row in rows:
        if len(row.fields) <= max(one, other):
            raise DataError(
                f"{shown_path(path)}, line {row.line}: {row.text[:80]!r} should be two nodes, the ends of an edge; "
                "isolated nodes need an adjacency list (.adjlist), GraphML or GML"
            )
    _refuse_other_lists(rows, path)
    bipartite = _check_comments(comments, path, rules)
    builder = Builder(path, rules)
    values = _values(rows, header, {one, other})
    for row, own in zip(rows, values, strict=True):
        a, b = (node_name(row.fields[column], row, path) for column in (one, other))
        # The two sides of KONECT's bipartite graphs are numbered separately.
        builder.edge(a, f"right {b}" if bipartite else b, row.line, own)
    _check_numbers(list(builder.ids), path)
    _check_announced(comments, builder, len(rows), path)
    return builder.graph()


def read_adjacency(rows: list[Row], path: Path, rules: Rules) -> FileGraph:
    """An adjacency list: each line is a node (a colon may follow) and its neighbours. Every edge is listed at one end,
    as networkx writes it, or every edge at both. A node alone is isolated.

    Raises:
        DataError: some edges are listed at one end and others at both, or the graph is not simple.
    """
    listed: dict[tuple[str, str], int] = {}
    builder = Builder(path, rules)
    for row in rows:
        words = [row.fields[0].removesuffix(":"), *row.fields[1:]]
        node, *others = (node_name(word, row, path) for word in words)
        builder.node(node, row.line)
        for name in others:
            if (node, name) in listed:
                raise DataError(f"{builder.at(row.line)} has the edge {node}-{name} twice")
            listed[node, name] = row.line
            if node == name or (name, node) not in listed:
                builder.edge(node, name, row.line)
    if len(listed) != len(builder.edges):
        for (node, name), line in listed.items():
            if (name, node) not in listed:
                raise DataError(
                    f"{builder.at(line)} lists {name} at {node}, but not {node} at {name}, although other edges are "
                    "listed at both ends: list all edges once, or all at both ends"
                )
    _check_numbers(list(builder.ids), path)
    return builder.graph()


def is_adjacency(rows: list[Row]) -> bool:
    """Whether every line begins with a node and a colon."""
    return bool(rows) and all(len(row.fields[0]) > 1 and row.fields[0].endswith(":") for row in rows)


def _values(rows: list[Row], header: list[str], ends: set[int]) -> list[dict[str, Any]]:
    """The attributes of each edge, from the columns that hold no ends, and from dictionaries."""
    found: list[dict[str, Any]] = [dict(row.attributes) for row in rows]
    for column in range(max((len(row.fields) for row in rows), default=0)):
        name = header[column] if column < len(header) else ""
        if column in ends or (header and re.sub(r"[\W_]", "", name.lower()) in NO_NODE):
            continue
        words = [row.fields[column] if column < len(row.fields) else "" for row in rows]
        if name.lower() == "type" and {word.lower() for word in words} <= {"undirected", "directed"}:
            continue  # Gephi's, which says whether edges are directed
        if not header:
            number = all(NUMBER.fullmatch(word) for word in words if word.lower() not in MISSING)
            name = "weight" if column == 2 and number else f"column {column + 1}"
        for one, value in zip(found, read_words(words), strict=True):
            one[name] = value
    return found


def read_words(words: list[str]) -> list[Any]:
    """The words of a column as integers, floats, booleans or texts, all alike; None where a value is missing."""
    known = [word for word in words if word.lower() not in MISSING]
    read: Callable[[str], Any] = str
    if all(re.fullmatch(r"[+-]?\d{1,18}", word) for word in known):
        read = int
    elif all(map(NUMBER.fullmatch, known)):
        read = float
    elif all(word.lower() in ("true", "false") for word in known):
        read = _is_true
    return [None if word.lower() in MISSING else read(word) for word in words]


def _is_true(word: str) -> bool:
    return word.lower() == "true"


def _skip_header(rows: list[Row], path: Path, rules: Rules) -> tuple[list[Row], tuple[int, int], list[str]]:
    """The rows without a line that names the columns, which columns hold the ends of an edge, and the names."""
    if not rows:
        return rows, (0, 1), []
    first, rest = rows[0].fields, rows[1:]
    keys = [re.sub(r"[\W_]", "", field.lower()) for field in first[:MOST_COLUMNS]]
    begins = [i for i, key in enumerate(keys) if FROM.fullmatch(key)]
    ends = [i for i, key in enumerate(keys) if TO.fullmatch(key)]
    words = not any(NUMBER.fullmatch(field) for field in first)
    if not words or len(first) < 2:
        return rows, (0, 1), []
    numeric = bool(rest) and all(NUMBER.fullmatch(field) for row in rest for field in row.fields[:2])
    known = len(begins) == 1 and len(ends) == 1
    used = {field for row in rest for field in row.fields[:2]}
    single = known and {len(keys[begins[0]]), len(keys[ends[0]])} == {1}  # u and v may well be nodes
    if not (numeric or (known and not single and not used & set(first))):
        return rows, (0, 1), []
    if "type" in keys:  # Gephi's table of edges
        for row in rest:
            if len(row.fields) > keys.index("type") and row.fields[keys.index("type")].lower() == "directed":
                refuse_directed(f"{shown_path(path)}, line {row.line}: the edge", rules)
                break
    if known:
        return rest, (begins[0], ends[0]), first
    if len(first) > 2 and keys[0] in NO_NODE:
        raise DataError(
            f"{shown_path(path)}, line {rows[0].line}: which columns of {rows[0].text[:80]!r} are the ends of an edge? "
            "Call them source and target"
        )
    return rest, (0, 1), first


def _refuse_other_lists(rows: list[Row], path: Path) -> None:
    """Raises DataError for an adjacency list, a matrix, or numbers of nodes and edges, which would pass for edges."""
    if not rows:
        return
    where = f"{shown_path(path)}, line {rows[0].line}"
    widths = {len(row.fields) for row in rows}
    if widths == {len(rows)} and len(rows) > 2 and all(field in ("0", "1") for row in rows for field in row.fields):
        raise DataError(f"{where}: this is an adjacency matrix, not an edge list: write a list of edges")
    nodes = {field for row in rows for field in row.fields[:2]}
    longest = max(rows, key=lambda row: len(row.fields))
    more = [field for row in rows for field in row.fields[2:]]
    heads = {row.fields[0] for row in rows}
    wide = min(widths) > 3 and len(heads) == len(rows)  # every node has a line, and many neighbours
    if more and all(field in nodes for field in more) and (len(widths) > 1 or wide):
        raise DataError(
            f"{shown_path(path)}, line {longest.line}, has {len(longest.fields)} nodes: is this an adjacency list? "
            "Then call the file .adjlist; an edge list has two nodes in each line, and as many columns in all"
        )
    relation = rows[0].fields[1]
    triples = len(rows) > 1 and widths == {3} and {row.fields[1] for row in rows} == {relation}
    if triples and not NUMBER.fullmatch(relation) and any(row.fields[2] in heads for row in rows):
        raise DataError(f"{where}: {relation!r} seems to be a relation (SIF), not a node: write two nodes in each line")
    counts, rest = rows[0].fields, rows[1:]
    if len(counts) == 2 and all(field.isdecimal() and len(field) < 19 for row in rows for field in row.fields[:2]):
        ids = [int(field) for row in rest for field in row.fields[:2]]
        if rest and int(counts[1]) == len(rest) and max(ids) <= int(counts[0]) == len(set(ids)):
            raise DataError(
                f"{where}: {rows[0].text!r} are the numbers of nodes and edges, not an edge: remove the line"
            )


def _check_comments(comments: list[tuple[int, str]], path: Path, rules: Rules) -> bool:
    """Whether the graph is bipartite. Raises DataError if it is directed."""
    for line, text in comments:
        snap = re.match(r"#\s*directed graph", text, re.IGNORECASE) and "unordered" not in text
        if snap or re.match(r"%\s*asym\b", text):
            refuse_directed(f"{shown_path(path)}, line {line}: the graph", rules)
            break
    return any(re.match(r"%\s*bip\b", text) for _, text in comments)


def _check_announced(comments: list[tuple[int, str]], builder: Builder, edges: int, path: Path) -> None:
    """Compare with the numbers in SNAP's comment ``# Nodes: N Edges: M``."""
    for line, text in comments:
        found = re.fullmatch(r"#\s*Nodes:\s*(\d+)\s+Edges:\s*(\d+)\s*", text)
        if found and (int(found[1]), int(found[2])) != (len(builder.ids), edges):
            raise DataError(
                f"{shown_path(path)}, line {line}, announces {found[1]} nodes and {found[2]} edges, but the file has "
                f"{len(builder.ids)} and {edges}: it was cut, or has isolated nodes, which an edge list cannot name"
            )


def _check_numbers(names: list[str], path: Path) -> None:
    """Raises DataError where ``07`` and ``7`` are both nodes: nobody can tell whether they are the same."""
    seen: dict[int, str] = {}
    for name in names:
        if name.isdecimal() and len(name) < 1000 and seen.setdefault(int(name), name) != name:
            raise DataError(f"{shown_path(path)} has the nodes {seen[int(name)]!r} and {name!r}: are they the same?")
