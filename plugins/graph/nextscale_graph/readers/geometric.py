"""torch-geometric's data sets, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nextscale.plugin import DataError
from nextscale_graph.readers.raw import RawGraphs, checked


def read_geometric(name: str, root: str) -> RawGraphs:
    """Read ``NAME`` of the TU collection (https://chrsmrrs.github.io/datasets/), or ``CLASS/NAME`` of any data set in
    ``torch_geometric.datasets``. Only the structure is read, not the features.

    Raises:
        DataError: the data set does not exist or cannot be downloaded, or a graph in it is directed or not simple.
    """
    from torch_geometric import datasets

    folder = Path(root).expanduser() / name.replace("/", "-")
    kind, _, part = name.rpartition("/")
    cls = getattr(datasets, kind or "TUDataset", None)
    if cls is None:
        raise DataError(f"pyg:{name}: torch_geometric.datasets has no {kind}")
    try:
        dataset = cls(str(folder), part)
    except Exception as error:  # downloads and parsers raise all kinds of errors
        raise DataError(f"pyg:{name} cannot be opened: {type(error).__name__}: {error}") from None
    graphs = []
    for i in range(len(dataset)):
        data = dataset[i]
        where = f"pyg:{name}: graph {i}"
        if data.edge_index.shape[1] and data.is_directed():
            raise DataError(f"{where} is directed: only undirected graphs are modelled")
        pairs = data.edge_index.numpy().astype(np.int64)
        graphs.append(checked(where, int(data.num_nodes or 0), pairs[:, pairs[0] <= pairs[1]]))
    if not graphs:
        raise DataError(f"pyg:{name} holds no graphs")
    return RawGraphs(graphs)
