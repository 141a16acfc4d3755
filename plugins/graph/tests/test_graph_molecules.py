"""Molecules: what a graph of atoms and bonds cannot hold is documented or refused, and what is written is read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextscale.errors import DataError
from nextscale_graph.config import GraphDataConfig
from nextscale_graph.data import open_graphs
from nextscale_graph.evaluate import evaluate_molecules
from nextscale_graph.graphs import concatenate
from nextscale_graph.readers import read_source
from nextscale_graph.writers import write_samples

pytest.importorskip("rdkit")
from nextscale_graph.readers.smiles import LONGEST, read_smiles, to_smiles


def strings(folder: Path, content: str | bytes) -> list[str | None]:
    path = folder / "m.smi"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    raw = read_smiles(path)
    return [to_smiles(graph, raw.node_types) for graph in raw.graphs]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfOCC ethanol\r\n\r\n# a comment\nCN\tamine\n", ["CCO", "CN"]),
        ("SMILES name\nCC=O x\n", ["CC=O"]),
        ("[K+].[Br-]\nC[N+](=O)[O-]\n", ["[Br-].[K+]", "C[N+](=O)[O-]"]),
        ("[14CH3]O\n[2H]C([2H])O\n[CH3:7]N\n", ["CO", "CO", "CN"]),
        ("N[C@@H](C)O\nC/C=C\\C\n", ["CC(N)O", "CC=CC"]),
        ("[H][H]\nC([H])([H])[H]\n", ["[H][H]", "C"]),
        ("c1cc[nH]c1\nn1ccccc1\n", ["c1cc[nH]c1", "c1ccncc1"]),
    ],
)
def test_what_is_kept_and_what_is_left_out(tmp_path: Path, content: str | bytes, expected: list[str]) -> None:
    assert strings(tmp_path, content) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"O->[Fe]", "has a bond of type DATIVE"),
        (b"C~N", "has a bond of type"),
        (b"[Re]$[Re]", "has a bond of type QUADRUPLE"),
        (b"CC*", "has the wildcard '*'"),
        (b"C[R1]", "does not parse"),
        (b"[CH2]C", "no radicals"),
        (b"[Li]", "no radicals"),
        (b"CCO,ethanol", "does not parse"),
        (b"C>>N", "does not parse"),
        (b"name", "does not parse"),
        (b"C\xe9C", "is not UTF-8"),
        (b"C" * (LONGEST + 1), "characters, more than"),
    ],
)
def test_what_would_be_lost_is_refused_at_its_line(tmp_path: Path, line: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        strings(tmp_path, b"CC\n\n" + line + b"\n")
    assert "m.smi, line 3" in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


def test_molecules_that_were_written_are_data(tmp_path: Path) -> None:
    lines = ["CO", "C=O", "C#N", "C[NH3+]", "OCC=C", "CCl", "CC", "CCC", "CCN", "NCCO"]
    (tmp_path / "m.smi").write_text("\n".join(lines))
    original = open_graphs(GraphDataConfig(source=str(tmp_path / "m.smi")))
    raw = read_source(str(tmp_path / "m.smi"), "")
    samples = concatenate(raw.graphs)
    write_samples(samples, tmp_path / "out", original.description)
    for source in (tmp_path / "out" / "graphs.npz", tmp_path / "out"):
        data = open_graphs(GraphDataConfig(source=str(source), kind="molecule"))
        back = read_source(str(source), "")
        found = [to_smiles(graph, back.node_types, back.edge_types) for graph in back.graphs]
        assert found == [to_smiles(graph, raw.node_types) for graph in raw.graphs]
        assert evaluate_molecules(concatenate(back.graphs), data)["valid"] == 1
    assert open_graphs(GraphDataConfig(source=str(tmp_path / "out" / "graphs.npz"))).description["kind"] == "molecule"


def test_graphs_that_are_no_molecules(small_file: Path) -> None:
    with pytest.raises(DataError, match="the types of nodes of molecules should be atoms"):
        open_graphs(GraphDataConfig(source=str(small_file), kind="molecule"))
