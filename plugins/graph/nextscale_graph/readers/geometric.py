"""torch-geometric's data sets, by name."""

from __future__ import annotations

import difflib
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np

from nextscale.plugin import DataError, NextscaleError, one_line
from nextscale_graph.config import GraphLimitsConfig
from nextscale_graph.graphs import GraphBatch
from nextscale_graph.readers.raw import RawGraphs, check_size, checked


def read_geometric(name: str, root: str, limits: GraphLimitsConfig | None = None) -> RawGraphs:
    """Read ``NAME`` of the TU collection (https://chrsmrrs.github.io/datasets/), ``CLASS/NAME`` of a data set in
    ``torch_geometric.datasets``, or ``CLASS/`` of one that has no names. Only the structure is read, not the features.

    Raises:
        DataError: the data set does not exist or cannot be downloaded, or a graph in it is directed, not simple or too
            large.
    """
    limits = limits or GraphLimitsConfig()
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
    return RawGraphs([_read(dataset, i, f"pyg:{name}: graph {i}", limits) for i in range(count)])


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


def _read(dataset: Any, i: int, where: str, limits: GraphLimitsConfig) -> GraphBatch:
    try:
        data = dataset[i]
        nodes, edges = int(data.num_nodes or 0), data.edge_index
        check_size(where, nodes, edges.shape[1] // 2, limits)
        directed = edges.shape[1] > 0 and data.is_directed()
        pairs = edges.cpu().numpy().astype(np.int64)
    except NextscaleError:
        raise
    except Exception as error:  # graphs of several kinds of nodes, without edges, or damaged
        raise DataError(f"{where} has no plain edges ({type(error).__name__}: {one_line(error)[:200]})") from None
    if directed:
        raise DataError(f"{where} is directed: only undirected graphs are modelled")
    return checked(where, nodes, pairs[:, pairs[0] <= pairs[1]])
