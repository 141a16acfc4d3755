"""Molecules: what a graph of atoms and bonds cannot hold is documented or refused, and what is written is read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nextscale.data import Samples
from nextscale.errors import DataError, NextscaleWarning
from nextscale_graph import molecules
from nextscale_graph.archives import write_archives
from nextscale_graph.config import GraphDataConfig
from nextscale_graph.data import open_graphs
from nextscale_graph.evaluate import evaluate_molecules
from nextscale_graph.graphs import GraphBatch, concatenate, single
from nextscale_graph.readers import read_source
from nextscale_graph.writers import write_grid, write_samples

pytest.importorskip("rdkit")
from nextscale_graph.molecules import molecule_picture
from nextscale_graph.readers.smiles import BONDS, LONGEST, read_smiles, to_smiles


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
    write_archives([Samples(samples, [], {})], tmp_path / "out", original.description)
    for source in (tmp_path / "out" / "graphs.npz", tmp_path / "out"):
        data = open_graphs(GraphDataConfig(source=str(source), kind="molecule"))
        back = read_source(str(source), "")
        found = [to_smiles(graph, back.node_types, back.edge_types) for graph in back.graphs]
        assert found == [to_smiles(graph, raw.node_types) for graph in raw.graphs]
        assert evaluate_molecules(concatenate(back.graphs), data)["valid"] == 1
    assert open_graphs(GraphDataConfig(source=str(tmp_path / "out" / "graphs.npz"))).description["kind"] == "molecule"


def drawn() -> tuple[GraphBatch, dict[str, Any]]:
    """Six samples, of which the second and the last are no molecules: carbon has five bonds, oxygen three."""
    description = {"kind": "molecule", "node_types": ["C", "N+1", "O"], "edge_types": list(BONDS)}
    parts = [
        single(2, np.array([[0], [1]]), np.array([0, 2]), np.array([0])),
        single(6, np.array([[0] * 5, [1, 2, 3, 4, 5]]), np.zeros(6, np.int64), np.zeros(5, np.int64)),
        single(3, np.array([[0, 1], [1, 2]]), np.array([0, 0, 2]), np.array([0, 1])),
        single(2, np.array([[0], [1]]), np.array([2, 0]), np.array([0])),
        single(4, np.array([[0, 2], [1, 3]]), np.array([0, 1, 0, 0]), np.array([0, 2])),
        single(2, np.array([[0], [1]]), np.array([0, 2]), np.array([2])),
    ]
    return concatenate(parts), description


def test_smiles_and_sdf_are_written_and_measure_the_same(tmp_path: Path) -> None:
    from rdkit import Chem

    (tmp_path / "m.smi").write_text(
        "\n".join(["CO", "C=O", "C#C", "C[NH3+]", "OCC=C", "CC", "CCC", "CCCC", "CCCO", "COC"])
    )
    data = open_graphs(GraphDataConfig(source=str(tmp_path / "m.smi")))
    samples, description = drawn()
    batches = [Samples(samples[:2], [], {}), Samples(samples[2:], [], {})]
    written = write_archives(batches, tmp_path / "out", description)
    assert [path.name for path in written] == ["graphs.npz", "molecules.smi", "molecules.sdf"]
    lines = (tmp_path / "out" / "molecules.smi").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["CO", "#", "CC=O", "CO", "C#C.C[NH3+]", "#"]
    assert lines[1] == "# invalid 000001: CC(C)(C)(C)C" and lines[5].startswith("# invalid 000005")
    blocks = list(Chem.SDMolSupplier(str(tmp_path / "out" / "molecules.sdf")))
    assert [one.GetProp("_Name") for one in blocks] == ["000000", "000002", "000003", "000004"]
    assert [Chem.MolToSmiles(one) for one in blocks] == [line.split()[0] for line in lines if line[0] != "#"]
    assert all(np.ptp(one.GetConformer().GetPositions()[:, :2], 0).max() > 0.5 for one in blocks)

    named = replace(samples, node_names=tuple(description["node_types"]), edge_names=tuple(BONDS))
    own = evaluate_molecules(named, data)
    assert own["valid"] == 4 / 6 and own["unique"] == 3 / 4 and own["connected"] == 3 / 6
    arrays, smiles = (evaluate_molecules(concatenate(read_source(str(path), "").graphs), data) for path in written[:2])
    assert arrays == own, "the arrays hold invalid samples too"
    shares = {name: own[name] / own["valid"] for name in ("valid", "connected")}
    assert smiles == own | shares, "the SMILES hold the valid samples, which are as unique and novel as before"


def test_molecules_are_drawn_and_invalid_ones_marked(tmp_path: Path) -> None:
    samples, description = drawn()
    pictures = [molecule_picture(samples[[i]], description["node_types"]) for i in range(len(samples))]
    assert [picture is None for picture in pictures] == [False, True, False, False, False, True]
    assert all(len(np.unique(picture.reshape(-1, 3), axis=0)) > 2 for picture in pictures if picture is not None)
    drawing = Image.open(write_grid(samples, tmp_path / "a.png", 3, description=description))
    plain = Image.open(write_grid(samples, tmp_path / "b.png", 3, description=description | {"kind": "none"}))
    assert drawing.size == plain.size and np.abs(np.subtract(drawing, plain, dtype=np.int64)).mean() > 1


def test_without_rdkit_graphs_are_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(molecules, "find_spec", lambda name: None)
    samples, description = drawn()
    with pytest.warns(NextscaleWarning, match=r"molecules.smi and molecules.sdf need RDKit"):
        written = write_archives([Samples(samples, [], {})], tmp_path, description)
    assert [path.name for path in written] == ["graphs.npz"] == [path.name for path in tmp_path.iterdir()]
    assert write_grid(samples, tmp_path / "a.png", description=description).stat().st_size > 0


def test_graphs_that_are_no_molecules(small_file: Path) -> None:
    with pytest.raises(DataError, match="the types of nodes of molecules should be atoms"):
        open_graphs(GraphDataConfig(source=str(small_file), kind="molecule"))
