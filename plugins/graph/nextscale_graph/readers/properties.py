"""Properties of graphs in a table that lies beside their files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from nextscale.plugin import DataError, exists, read_text, reading, shown_path, unknown
from nextscale_graph.readers.columns import read_words
from nextscale_graph.readers.raw import FileGraph
from nextscale_graph.readers.rules import Rules

TABLE = "properties.csv"


def read_properties(folder: Path, paths: Sequence[Path], graphs: Sequence[FileGraph], rules: Rules) -> None:
    """Add the columns of ``properties.csv`` in ``folder``, or of the file ``FOLDER.csv`` beside it, to the properties
    of the graphs. The first column is the name of the graph's file, below ``folder``, with or without its ending. The
    first line names the columns. Nothing is read if no property is asked for, or there is no such table.

    Raises:
        DataError: the table is damaged, names a file twice or one that is no graph, or a graph is missing.
    """
    if rules.properties == ():
        return
    table = next((path for path in (folder / TABLE, folder.with_name(f"{folder.name}.csv")) if exists(path)), None)
    if table is None:
        return
    with reading(table, "table"):
        rows = [row for row in csv.reader(io.StringIO(read_text(table, rules.limits)), strict=True) if row]
    shown = shown_path(table)
    if not rows or len(rows[0]) < 2:
        raise DataError(f"{shown} should have a line that names its columns: file, then the properties")
    header = [name.strip() for name in rows[0]]
    names: dict[str, int] = {}
    for i, path in enumerate(paths):
        inner = path.relative_to(folder)
        names |= {str(name): i for name in (inner, inner.with_suffix(""))}
    by_graph: dict[int, list[str]] = {}
    for row in rows[1:]:
        name = row[0].strip()
        if name not in names:
            raise DataError(f"{shown}: {unknown('file', name, names)}")
        if len(row) != len(header):
            raise DataError(f"{shown}: the line of {name} has {len(row)} columns; the first line has {len(header)}")
        if names[name] in by_graph:
            raise DataError(f"{shown} has two lines for {name}")
        by_graph[names[name]] = [word.strip() for word in row]
    for i, path in enumerate(paths):
        if i not in by_graph:
            raise DataError(f"{shown} has no line for {path.relative_to(folder)}")
    for column, name in enumerate(header[1:], start=1):
        values = read_words([by_graph[i][column] for i in range(len(paths))])
        for graph, value in zip(graphs, values, strict=True):
            graph.properties[name] = value
