"""Files that hold all graphs of a draw, written as the graphs are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from nextscale.plugin import Samples, growing_npz
from nextscale_graph.molecules import SDF, SMILES, are_molecules, molecule_files, warn_without_rdkit
from nextscale_graph.writers import arrays_of


def write_archives(batches: Iterable[Samples], folder: Path, description: Mapping[str, Any]) -> list[Path]:
    """Write ``graphs.npz``, and for molecules ``molecules.smi`` and ``molecules.sdf``. ``data=`` reads the first two.

    ``graphs.npz`` holds all graphs as they were drawn (``readers.arrays.read_npz``), in ``given`` the names of given
    nodes (``GraphBatch.given``), and in ``metadata`` the texts that all samples have in common, as JSON.
    """
    written = [folder / "graphs.npz"]
    with ExitStack() as files:
        arrays = files.enter_context(growing_npz(written[0]))
        molecules = None
        if are_molecules(description):
            types = description["node_types"], description["edge_types"]
            molecules = files.enter_context(molecule_files(folder, *types))
            written += [folder / SMILES, folder / SDF]
        warn_without_rdkit(description)
        edges, given = 0, []
        for number, batch in enumerate(batches):
            graphs = batch.samples.to("cpu")
            parts = arrays_of(graphs, description)
            whole = {name: parts.pop(name) for name in list(parts) if name.endswith("_type_names") or name == "kind"}
            offsets = parts.pop("edge_offsets") + edges
            arrays.append(
                parts | {"edge_offsets": offsets[min(number, 1) :]}
            )  # each but the first begins where one ends
            edges = int(offsets[-1])
            arrays.put(whole)
            arrays.note(batch.metadata)
            given += graphs.given
            if molecules is not None:
                molecules.add(graphs)
        arrays.put({"given": np.array(given)} if given else {})
    return written
