"""torch-geometric's data sets, by name."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nextscale.plugin import DataError, NextscaleError, one_line
from nextscale_graph.config import GraphLimitsConfig
from nextscale_graph.readers.assemble import tabulate_properties
from nextscale_graph.readers.raw import RawGraphs, check_size, checked, refuse_directed
from nextscale_graph.readers.rules import Rules
from nextscale_graph.readers.tables import tabulate


def read_geometric(
    name: str, root: str, limits: GraphLimitsConfig | None = None, rules: Rules | None = None
) -> RawGraphs:
    """Read ``NAME`` of the TU collection (https://chrsmrrs.github.io/datasets/), ``CLASS/NAME`` of a data set in
    ``torch_geometric.datasets``, or ``CLASS/`` of one that has no names. Features of nodes and edges are attributes
    (``from_data``), ``y`` is a property.

    Raises:
        DataError: the data set does not exist or cannot be downloaded, or a graph in it is directed, not simple or too
            large.
    """
    rules = rules or Rules(limits or GraphLimitsConfig())
    # The name becomes a folder, so it must not lead out of the root.
    if not re.fullmatch(r"[\w-][\w.+-]*(/([\w-][\w.+-]*)?)?", name):
        raise DataError(
            f"pyg:{name[:80]} is no name of a data set: it should be pyg:NAME, pyg:CLASS/NAME or pyg:CLASS/"
        )
    kind, slash, part = name.partition("/")
    cls, arguments = _class(kind, part) if slash else _class("TUDataset", kind)
    try:
        folder = Path(root).expanduser() / name.replace("/", "-")
        dataset = cls(str(folder), *arguments) if "root" in inspect.signature(cls).parameters else cls()
        count = len(dataset)
    except Exception as error:  # downloads and parsers raise all kinds of errors
        hint = "" if slash or not _is_dataset(kind) else f"; for the class {kind}, write pyg:{kind}/"
        reason = one_line(error)[:200]
        raise DataError(f"pyg:{name} cannot be opened ({type(error).__name__}: {reason}){hint}") from None
    if not count:
        raise DataError(f"pyg:{name} holds no graphs")
    return from_data((dataset[i] for i in range(count)), [f"pyg:{name}: graph {i}" for i in range(count)], rules)


def _is_dataset(name: str) -> bool:
    from torch_geometric import datasets
    from torch_geometric.data import Dataset

    found = getattr(datasets, name, None)
    return isinstance(found, type) and issubclass(found, Dataset)


def _class(kind: str, part: str) -> tuple[Any, list[str]]:
    """The class of a data set, and what it takes behind the folder: its name, or nothing."""
    from torch_geometric import datasets

    if not _is_dataset(kind):
        close = difflib.get_close_matches(kind, filter(_is_dataset, dir(datasets)), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(f"pyg:{kind}/: torch_geometric.datasets has no class {kind!r}{hint}")
    cls = getattr(datasets, kind)
    second = [each for each in inspect.signature(cls).parameters.values() if each.name != "root"][:1]
    named = bool(second) and (second[0].name == "name" or second[0].default is inspect.Parameter.empty)
    if named and not part:
        raise DataError(f"pyg:{kind}/ needs the {second[0].name} of the data set: pyg:{kind}/NAME")
    if part and not named:
        raise DataError(f"pyg:{kind}/{part}: {kind} has no data sets with names; write pyg:{kind}/")
    return cls, [part] if named else []


MOST_FEATURES = 32
"""Features with more columns, which are no one-hot codes, are left out unless they are asked for by name."""


def from_data(graphs: Iterable[Any], wheres: Sequence[str], rules: Rules) -> RawGraphs:
    """Graphs of torch-geometric (``Data``) with their attributes.

    Attributes of nodes (``x``, ``pos``, ...) and edges (``edge_attr``, ...) that have one column, or are one-hot codes
    in every graph, are one attribute, the latter a whole number. Others are one attribute per column: ``x_0``, ``x_1``
    and so on. Attributes of the graph, such as ``y``, are its properties.

    Raises:
        DataError: as ``raw.checked``; also graphs without plain edges, and attributes that some graphs lack.
    """
    read = [_read(data, where, rules) for data, where in zip(graphs, wheres, strict=True)]
    counts = [(nodes, len(kept)) for nodes, _, _, kept, _ in read]
    tables = []
    for side, of in enumerate(("node", "edge")):
        parts = [found[side] for *_, found in read]
        columns = _as_columns(parts, of, rules)
        tables.append(
            tabulate(
                columns, [count[side] for count in counts], lambda i, j, of=of: f"{wheres[i]}: {of} {j}", of, rules
            )
        )
    (nodes, node_rows), (edges, edge_rows) = tables
    flat = [_flat(found[2]) for *_, found in read]
    properties, table = tabulate_properties(flat, wheres, rules)
    return RawGraphs(
        [
            replace(
                checked(
                    wheres[i],
                    number,
                    pairs,
                    node_values=None if node_rows is None else node_rows[i],
                    edge_values=None if edge_rows is None else edge_rows[i],
                    rules=rules,
                ),
                node_attributes=nodes,
                edge_attributes=edges,
                graph_attributes=properties,
                graph_values=None if table is None else table[i : i + 1],
            )
            for i, (number, pairs, _, _, _) in enumerate(read)
        ]
    )


def _read(data: Any, where: str, rules: Rules) -> tuple[int, np.ndarray, bool, np.ndarray, list[dict[str, np.ndarray]]]:
    """The number of nodes; the edges 2 E; whether they are directed; which columns of ``edge_index`` they are; and the
    attributes of nodes, of edges (of these columns) and of the graph."""
    try:
        nodes, ends = int(data.num_nodes or 0), data.edge_index
        check_size(where, nodes, ends.shape[1] // 2, rules.limits)
        directed = ends.shape[1] > 0 and data.is_directed()
        pairs = ends.cpu().numpy().astype(np.int64)
        sides = ({}, {}, {})
        for name in data.keys():  # noqa: SIM118 (not a mapping)
            value = data[name]
            if name in ("edge_index", "num_nodes", "ptr", "batch") or not hasattr(value, "shape"):
                if isinstance(value, str | int | float) and name != "num_nodes":
                    sides[2][name] = np.array([value])
                continue
            array = np.asarray(value.cpu() if hasattr(value, "cpu") else value)
            one_value = name == "y" and array.shape[:1] in ((), (1,))
            side = 2 if one_value else 1 if data.is_edge_attr(name) else 0 if data.is_node_attr(name) else 2
            sides[side][name] = array
    except NextscaleError:
        raise
    except Exception as error:  # graphs of several kinds of nodes, without edges, or damaged
        raise DataError(f"{where} has no plain edges ({type(error).__name__}: {one_line(error)[:200]})") from None
    if directed:
        refuse_directed(where, rules)
    kept = np.flatnonzero((pairs[0] <= pairs[1]) | directed)
    edges = {name: array[kept] for name, array in sides[1].items()}
    return nodes, pairs[:, kept], directed, kept, [sides[0], edges, sides[2]]


def _as_columns(parts: Sequence[dict[str, np.ndarray]], of: str, rules: Rules) -> list[dict[str, np.ndarray]]:
    """Each array as one column or several."""
    found: list[dict[str, np.ndarray]] = [{} for _ in parts]
    for name in dict.fromkeys(name for part in parts for name in part):
        arrays = [part.get(name) for part in parts]
        widths = {array.reshape(len(array), -1).shape[1] for array in arrays if array is not None and array.size}
        if not widths:
            continue
        if len(widths) > 1 or max(array.ndim for array in arrays if array is not None) > 2:
            rules.left_out[f"{of} {name}"] = "no table, or of different widths"
            continue
        tables = [None if array is None else array.reshape(len(array), -1) for array in arrays]
        width = widths.pop()
        one_hot = width > 1 and all(_is_one_hot(table) for table in tables if table is not None)
        if width > MOST_FEATURES and not one_hot and rules.attributes is None:
            rules.left_out[f"{of} {name}"] = f"{width} columns: name those to read, such as {name}_0"
            continue
        for out, table in zip(found, tables, strict=True):
            if table is None or not table.size:
                continue
            if one_hot or width == 1:
                out[name] = table.argmax(1) if one_hot else table[:, 0]
            else:
                out |= {f"{name}_{i}": table[:, i] for i in range(width)}
    return found


def _is_one_hot(table: np.ndarray) -> bool:
    return bool(((table == 0) | (table == 1)).all() and (table.sum(1) == 1).all())


def _flat(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Properties of one value each: ``y`` of several values is ``y_0``, ``y_1`` and so on."""
    found: dict[str, Any] = {}
    for name, array in arrays.items():
        values = array.reshape(-1).tolist()
        found |= {name: values[0]} if len(values) == 1 else {f"{name}_{i}": value for i, value in enumerate(values)}
    return found
