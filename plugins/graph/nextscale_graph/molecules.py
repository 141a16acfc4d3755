"""Molecules as chemists use them: SMILES, SDF and drawings (extra: molecules)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from nextscale.plugin import NextscaleWarning, replacing
from nextscale_graph.graphs import GraphBatch
from nextscale_graph.readers.smiles import BONDS, canonical, chemistry, to_molecule

SMILES, SDF = "molecules.smi", "molecules.sdf"
PICTURE = 320
"""Pixels of a drawing's side."""


def are_molecules(description: Mapping[str, Any] | None) -> bool:
    """Whether data of this description are molecules, and RDKit is there to treat them so."""
    return (description or {}).get("kind") == "molecule" and find_spec("rdkit") is not None


class MoleculeFiles:
    """The two files of a draw, to which molecules are added as they are drawn."""

    def __init__(self, smiles: IO[str], sdf: Any, node_types: Sequence[str], edge_types: Sequence[str]) -> None:
        self._smiles, self._sdf, self._types = smiles, sdf, (node_types, edge_types)
        self._number = 0

    def add(self, graphs: GraphBatch) -> None:
        from rdkit.Chem import rdDepictor

        for i in range(len(graphs)):
            molecule = to_molecule(graphs[[i]], *self._types)
            raw, text = _unchecked(molecule), canonical(molecule)
            if text is None:
                self._smiles.write(f"# invalid {self._number:06d}: {raw}\n")
            else:
                self._smiles.write(f"{text} {self._number:06d}\n")
                molecule.SetProp("_Name", f"{self._number:06d}")
                rdDepictor.Compute2DCoords(molecule)
                self._sdf.write(molecule)
            self._number += 1


@contextmanager
def molecule_files(folder: Path, node_types: Sequence[str], edge_types: Sequence[str]) -> Iterator[MoleculeFiles]:
    """Write ``molecules.smi`` and ``molecules.sdf`` in ``folder``, whole or not at all.

    The first has a line for each sample: its canonical SMILES and its number. Invalid samples are comments, so that
    ``data=`` reads back all that are valid. The second has the valid ones with 2-D coordinates, atoms numbered as the
    nodes of the graph.
    """
    chem = chemistry()
    with (
        replacing(folder / SMILES) as lines,
        replacing(folder / SDF) as blocks,
        lines.open("w", encoding="utf-8") as smiles,
        closing(chem.SDWriter(str(blocks))) as sdf,
    ):
        yield MoleculeFiles(smiles, sdf, node_types, edge_types)


def molecule_picture(
    graph: GraphBatch, node_types: Sequence[str], edge_types: Sequence[str] = tuple(BONDS)
) -> np.ndarray | None:
    """H W 3 of uint8: a batch of one graph as RDKit draws it, with bond orders and atom symbols; None if it is not a
    valid molecule."""
    from rdkit.Chem.Draw import rdMolDraw2D

    molecule = to_molecule(graph, node_types, edge_types)
    if canonical(molecule) is None:
        return None
    drawing = rdMolDraw2D.MolDraw2DCairo(PICTURE, PICTURE)
    drawing.drawOptions().fixedBondLength = PICTURE / 8  # else small molecules fill the picture
    rdMolDraw2D.PrepareAndDrawMolecule(drawing, molecule)
    drawing.FinishDrawing()
    return np.asarray(Image.open(io.BytesIO(drawing.GetDrawingText())).convert("RGB"))


def warn_without_rdkit(description: Mapping[str, Any]) -> None:
    if description.get("kind") == "molecule" and not are_molecules(description):
        warnings.warn(
            f"{SMILES} and {SDF} need RDKit and are not written: pip install 'nextscale[molecules]'",
            NextscaleWarning,
            stacklevel=2,
        )


def _unchecked(molecule: Any) -> str:
    """SMILES of a molecule that may be invalid: a text to look at, which RDKit need not be able to read."""
    chem = chemistry()
    copy = chem.RWMol(molecule)
    try:
        copy.UpdatePropertyCache(strict=False)
        return chem.MolToSmiles(copy)
    except ValueError:
        return f"{molecule.GetNumAtoms()} atoms"
