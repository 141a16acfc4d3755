"""Molecules in SMILES files, converted to and from graphs with types (extra: molecules)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nextscale.plugin import DataError, NextscaleError
from nextscale_graph.graphs import GraphBatch, single
from nextscale_graph.readers.raw import RawGraphs

BONDS = ["SINGLE", "DOUBLE", "TRIPLE"]
SIBLINGS = ("train", "val", "test")


def chemistry() -> Any:
    """RDKit's Chem module, with its log switched off.

    Raises:
        NextscaleError: RDKit is not installed.
    """
    try:
        from rdkit import Chem, RDLogger
    except ImportError:
        raise NextscaleError("molecules need RDKit: pip install 'nextscale[molecules]'") from None
    RDLogger.DisableLog("rdApp.*")  # pyright: ignore[reportAttributeAccessIssue]
    return Chem


def read_smiles(path: Path) -> RawGraphs:
    """One SMILES per line; text after the first space is ignored. For a file ``*_train.smi``, its siblings
    ``*_val.smi`` and ``*_test.smi`` are the other splits. Aromatic bonds become single and double bonds (Kekulé).

    Raises:
        DataError: a line does not parse. NextscaleError: RDKit is not installed.
    """
    stem = path.stem.removesuffix("_train")
    files = {name: path.with_name(f"{stem}_{name}{path.suffix}") for name in SIBLINGS}
    if path.stem == stem or not all(file.exists() for file in files.values()):
        files = {"": path}
    found: list[tuple[list[str], np.ndarray, list[int]]] = []
    splits: list[str] = []
    for split, file in files.items():
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            if line.strip():
                found.append(parse(line.split()[0], f"{file}, line {number}"))
                splits.append(split)
    if not found:
        raise DataError(f"{path} holds no molecules")
    names = sorted({name for atoms, _, _ in found for name in atoms})
    ids = {name: i for i, name in enumerate(names)}
    graphs = [
        single(len(atoms), edges, np.array([ids[name] for name in atoms]), np.array(bonds, np.int64))
        for atoms, edges, bonds in found
    ]
    return RawGraphs(graphs, splits if splits[0] else None, names, BONDS, "molecule")


def parse(smiles: str, where: str) -> tuple[list[str], np.ndarray, list[int]]:
    """Atoms (such as ``C``, ``N+1``), bonds 2 E, and bond types."""
    chem = chemistry()
    molecule = chem.MolFromSmiles(smiles)
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise DataError(f"{where}: {smiles!r} does not parse as SMILES")
    chem.Kekulize(molecule, clearAromaticFlags=True)
    atoms = [
        atom.GetSymbol() + (f"{charge:+d}" if (charge := atom.GetFormalCharge()) else "")
        for atom in molecule.GetAtoms()
    ]
    edges = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]
    bonds = [BONDS.index(str(bond.GetBondType())) for bond in molecule.GetBonds()]
    return atoms, np.array(edges, np.int64).reshape(-1, 2).T, bonds


def to_smiles(graph: GraphBatch, node_types: list[str]) -> str | None:
    """Canonical SMILES of a batch of one graph, without any correction; None if it is not a valid molecule."""
    chem = chemistry()
    assert graph.node_types is not None and graph.edge_types is not None
    molecule = chem.RWMol()
    for kind in graph.node_types.tolist():
        name = node_types[kind]
        symbol, charge = (name[:-2], int(name[-2:])) if name[-1].isdigit() else (name, 0)
        atom = chem.Atom(symbol)
        atom.SetFormalCharge(charge)
        molecule.AddAtom(atom)
    for (a, b), kind in zip(graph.edges.T.tolist(), graph.edge_types.tolist(), strict=True):
        molecule.AddBond(a, b, getattr(chem.BondType, BONDS[kind]))
    try:
        chem.SanitizeMol(molecule)
        smiles = chem.MolToSmiles(molecule)
    except ValueError:
        return None
    return smiles if chem.MolFromSmiles(smiles) is not None else None
