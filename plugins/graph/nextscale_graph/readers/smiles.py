"""Molecules in SMILES files, converted to and from graphs with types (extra: molecules)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nextscale.plugin import DataError, NextscaleError, read_text, shown_path
from nextscale_graph.config import GraphLimitsConfig
from nextscale_graph.graphs import GraphBatch, single
from nextscale_graph.readers.raw import RawGraphs

BONDS = ["SINGLE", "DOUBLE", "TRIPLE"]
SIBLINGS = ("train", "val", "test")
ATOM = re.compile(r"([A-Z][a-z]?)([+-]\d+)?")
HEADERS = ("smiles", "smile", "canonical_smiles", "isosmiles", "mol", "molecule", "structure")
LONGEST = 10_000
"""Characters of a SMILES. RDKit takes seconds and much memory for far longer ones."""


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


def read_smiles(path: Path, limits: GraphLimitsConfig | None = None) -> RawGraphs:
    """One SMILES per line; text after the first blank, blank lines, lines that begin with ``#``, and a header are
    ignored. For a file ``*_train.smi``, its siblings ``*_val.smi`` and ``*_test.smi`` are the other splits.

    Atoms have an element and a charge, bonds are single, double or triple. Aromatic bonds become single and double
    bonds (Kekulé). Hydrogen is implied, isotopes and stereochemistry are left out. Salts and mixtures are graphs
    of several components.

    Raises:
        DataError: a line does not parse, or its molecule is not determined by atoms, charges and such bonds: wildcards,
            dative and unspecified bonds, radicals, unusual numbers of hydrogen.
        NextscaleError: RDKit is not installed.
    """
    stem = path.stem.removesuffix("_train")
    files = {name: path.with_name(f"{stem}_{name}{path.suffix}") for name in SIBLINGS}
    if path.stem == stem or not all(file.exists() for file in files.values()):
        files = {"": path}
    found: list[tuple[list[str], np.ndarray, list[int]]] = []
    splits: list[str] = []
    for split, file in files.items():
        first = True
        for number, line in enumerate(read_text(file, limits).splitlines(), start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if not (first and words[0].lower().strip('"').split(",")[0] in HEADERS):
                found.append(parse(words[0], f"{shown_path(file)}, line {number}"))
                splits.append(split)
            first = False
    if not found:
        raise DataError(f"{shown_path(path)} holds no molecules")
    names = sorted({name for atoms, _, _ in found for name in atoms})
    ids = {name: i for i, name in enumerate(names)}
    graphs = [
        single(len(atoms), edges, np.array([ids[name] for name in atoms]), np.array(bonds, np.int64))
        for atoms, edges, bonds in found
    ]
    return RawGraphs(graphs, splits if splits[0] else None, names, BONDS, "molecule")


def parse(smiles: str, where: str) -> tuple[list[str], np.ndarray, list[int]]:
    """Atoms (such as ``C``, ``N+1``), bonds 2 E, and bond types.

    Raises:
        DataError: see ``read_smiles``.
    """
    chem = chemistry()
    shown = smiles if len(smiles) <= 80 else f"{smiles[:77]}..."
    if len(smiles) > LONGEST:
        raise DataError(f"{where}: {shown!r} has {len(smiles):,} characters, more than {LONGEST:,}")
    molecule = chem.MolFromSmiles(smiles)
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise DataError(f"{where}: {shown!r} does not parse as SMILES")
    for atom in molecule.GetAtoms():
        if atom.GetAtomicNum() == 0:
            raise DataError(f"{where}: {shown!r} has the wildcard {atom.GetSymbol()!r}: every atom needs an element")
        atom.SetIsotope(0)
        atom.SetAtomMapNum(0)
    molecule = chem.RemoveHs(molecule)
    # Where all atoms are outside brackets, hydrogen follows from the bonds.
    expected = chem.MolToSmiles(molecule, isomericSmiles=False) if "[" in smiles else None
    chem.Kekulize(molecule, clearAromaticFlags=True)
    atoms = [
        atom.GetSymbol() + (f"{charge:+d}" if (charge := atom.GetFormalCharge()) else "")
        for atom in molecule.GetAtoms()
    ]
    kinds = [str(bond.GetBondType()) for bond in molecule.GetBonds()]
    wrong = sorted(set(kinds) - set(BONDS))
    if wrong:
        raise DataError(f"{where}: {shown!r} has a bond of type {wrong[0]}; bonds should be single, double or triple")
    ends = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]
    edges, bonds = np.array(ends, np.int64).reshape(-1, 2).T, [BONDS.index(kind) for kind in kinds]
    if expected is not None:
        names = sorted(set(atoms))
        graph = single(len(atoms), edges, np.array([names.index(name) for name in atoms]), np.array(bonds, np.int64))
        became = to_smiles(graph, names)
        if became is None or became != chem.CanonSmiles(expected):
            raise DataError(
                f"{where}: {shown!r} would become {became!r}, because a graph holds elements, charges and bonds, but "
                "no radicals or unusual numbers of hydrogen: leave it out"
            )
    return atoms, edges, bonds


def check_types(node_types: Sequence[str], edge_types: Sequence[str], source: str) -> None:
    """Raises DataError if types are not those of molecules."""
    try:
        _atoms(tuple(node_types))
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    wrong = [name for name in edge_types if name not in BONDS]
    if wrong and list(edge_types) != ["edge"]:  # atoms without a single bond
        raise DataError(f"{source}: the types of edges of molecules should be {', '.join(BONDS)}, not {wrong[0]!r}")


@lru_cache
def _atoms(names: tuple[str, ...]) -> list[tuple[str, int]]:
    """The element and the charge of each type of node."""
    table = chemistry().GetPeriodicTable()
    known = {table.GetElementSymbol(number) for number in range(1, 119)}
    found = [ATOM.fullmatch(name) for name in names]
    wrong = [name for name, match in zip(names, found, strict=True) if match is None or match[1] not in known]
    if wrong or not names:
        what = repr(wrong[0]) if wrong else "none"
        raise DataError(f"the types of nodes of molecules should be atoms, such as 'C' or 'N+1', not {what}")
    return [(match[1], int(match[2] or 0)) for match in found if match is not None]


def to_smiles(graph: GraphBatch, node_types: Sequence[str], edge_types: Sequence[str] = tuple(BONDS)) -> str | None:
    """Canonical SMILES of a batch of one graph, without any correction; None if it is not a valid molecule.

    Raises:
        DataError: types are not those of molecules.
    """
    return canonical(to_molecule(graph, node_types, edge_types))


def canonical(molecule: Any) -> str | None:
    """Canonical SMILES of a molecule of RDKit, which is sanitized by this; None if it is not valid."""
    chem = chemistry()
    try:
        chem.SanitizeMol(molecule)
        smiles = chem.MolToSmiles(molecule)
    except ValueError:
        return None
    return smiles if chem.MolFromSmiles(smiles) is not None else None


def to_molecule(graph: GraphBatch, node_types: Sequence[str], edge_types: Sequence[str] = tuple(BONDS)) -> Any:
    """A batch of one graph as a molecule of RDKit that nobody has checked. Atoms are numbered as the graph's nodes.

    Raises:
        DataError: types are not those of molecules.
    """
    chem = chemistry()
    if graph.node_types is None or graph.edge_types is None:
        raise DataError("molecules need the types of nodes and edges: atoms and bonds")
    molecule = chem.RWMol()
    known = _atoms(tuple(node_types))
    for kind in graph.node_types.tolist():
        symbol, charge = known[kind]
        atom = chem.Atom(symbol)
        atom.SetFormalCharge(charge)
        molecule.AddAtom(atom)
    for (a, b), kind in zip(graph.edges.T.tolist(), graph.edge_types.tolist(), strict=True):
        bond = str(edge_types[kind])
        if bond not in BONDS:
            raise DataError(f"the types of edges of molecules should be {', '.join(BONDS)}, not {bond!r}")
        molecule.AddBond(a, b, getattr(chem.BondType, bond))
    return molecule
