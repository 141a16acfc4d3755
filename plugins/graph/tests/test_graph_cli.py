"""``nextscale train``, ``sample``, ``eval`` and ``edit`` on graphs, with a model of a few thousand weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import nextscale
from nextscale.sampling.generate import generate
from nextscale.storage.seal import read_sealed, write_sealed
from nextscale_cli.main import app
from nextscale_graph.modality import GraphModality
from nextscale_graph.readers.arrays import read_npz
from nextscale_graph.readers.folder import read_folder

TINY = [
    "tokenizer.max_nodes=12", "tokenizer.ratio=0.3", "tokenizer.stem.layers=1", "transformer.width=16",
    "training.transformer.steps=4", "training.transformer.batch_size=4", "training.transformer.validate_every=2",
    "training.transformer.checkpoint_every=2", "training.device=cpu",
]  # fmt: skip


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(small_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    result = invoke("train", "-m", "graph", f"data={small_file}", *TINY, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


def test_training_writes_a_run_that_resumes(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss/node", "loss/edge", "loss/count"} <= lines[-1].keys() | lines[-2].keys()
    result = invoke("train", "-m", "graph", "--out", run, "--resume", "auto")
    assert result.exit_code == 0 and "already trained" in result.output


def test_samples_of_a_size_are_written(run: Path, tmp_path: Path) -> None:
    result = invoke("sample", run, "--num", 5, "--size", 6, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    graphs = [nx.read_graphml(path) for path in sorted((tmp_path / "out" / "single").glob("*.graphml"))]
    assert [graph.graph["sample"] for graph in graphs] == ["0", "1", "2", "3", "4"]
    assert [len(graph) for graph in graphs] == [6] * 5
    invoke("sample", run, "--num", 5, "--size", 6, "--batch-size", 2, "--out", tmp_path / "batches")
    with np.load(tmp_path / "out/single/graphs.npz") as arrays, np.load(tmp_path / "batches/single/graphs.npz") as more:
        assert arrays["num_nodes"].tolist() == [6] * 5
        assert {name: arrays[name].tolist() for name in arrays} == {name: more[name].tolist() for name in more}
    assert all((tmp_path / "out" / name).stat().st_size > 0 for name in ("grid.png", "film.png"))


def test_an_interrupt_leaves_an_archive_of_what_was_drawn(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, out = GraphModality.write_samples, tmp_path / "out"

    def interrupted(self: GraphModality, *args: Any, **more: Any) -> list[Path]:
        if more["first"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(self, *args, **more)

    monkeypatch.setattr(GraphModality, "write_samples", interrupted)
    result = invoke("sample", run, "-n", 100, "--size", 6, "--batch-size", 2, "--out", out)
    assert result.exit_code == 143 and f"interrupted: 4 of 100 samples are in {out}" in result.output
    graphs = read_npz(out / "single" / "graphs.npz").graphs
    files = read_folder(out / "single").graphs
    assert len(graphs) == len(files) == 4
    assert all(torch.equal(one.edges, other.edges) for one, other in zip(graphs, files, strict=True))
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize(
    ("size", "message"),
    [(0, "size 0 is out of range"), (13, "more than tokenizer.max_nodes 12"), ("x", "should be a whole number")],
)
def test_impossible_sizes(run: Path, size: object, message: str) -> None:
    result = invoke("sample", run, "-n", 1, f"size={size}")
    assert result.exit_code == 2 and message in result.output and result.output.count("\n") == 1


def test_a_size_never_seen_is_tried(run: Path, tmp_path: Path) -> None:
    result = invoke("sample", run, "-n", 1, "size=11", "--out", tmp_path / "out", "--no-film")
    assert result.exit_code == 0 and "warning: size 11 is beyond the data" in result.output


def test_a_run_with_an_unknown_setting(run: Path, small_file: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run" / "tokenizer"
    body = read_sealed(folder)
    body["tokenizer"]["ration"] = body["tokenizer"].pop("ratio")
    write_sealed(folder, load_file(folder / "model.safetensors"), body)
    what = "written by another version, or is damaged: ration: Extra inputs are not permitted"
    result = invoke("sample", tmp_path / "run", "-n", 1)
    assert result.exit_code == 2 and what in result.output and result.output.count("\n") == 1
    start = f"training.init={tmp_path / 'run'}"
    result = invoke("train", "-m", "graph", f"data={small_file}", *TINY, start, "--out", tmp_path / "new")
    assert result.exit_code == 2 and what in result.output and result.output.count("\n") == 1, result.output
    assert not (tmp_path / "new").exists()


def test_evaluation(run: Path) -> None:
    result = invoke("eval", run, "--samples", 4, "--repeats", 2, "temperature=0.8")
    assert result.exit_code == 0, result.output
    results = json.loads((run / "eval.json").read_text())
    assert results["reconstruction"]["lossless"] == 1
    assert {"mmd_degree", "floor_degree", "ratio", "ratio_std", "unique", "novel"} <= results["samples"]["0"].keys()


def test_samples_are_drawn_again_until_the_requirement_holds(run: Path) -> None:
    """An untrained model joins children at random. Every graph is connected, so a forest is a tree."""
    model = nextscale.load(run)
    free = model.generate(10, seed=0, size=9).samples.to_networkx()
    bound = model.generate(10, seed=0, size=9, sampling={"require": "forest", "tries": 500}).samples.to_networkx()
    assert not all(map(nx.is_forest, free)) and all(map(nx.is_forest, bound))
    assert [len(graph) for graph in bound] == [9] * 10
    result = invoke("sample", run, "-n", 1, "require=plannar")
    assert result.exit_code == 2 and "did you mean 'planar'?" in result.output and result.output.count("\n") == 1


def test_settings_by_scale_name(run: Path, tmp_path: Path) -> None:
    model = nextscale.load(run)
    plain = model.generate(6, seed=0, size=9)
    named = model.generate(6, seed=0, size=9, sampling={"temperature": {"count": 1.0, "edge": 1.0}})
    assert torch.equal(plain.samples.edges, named.samples.edges)
    # Greedy at the first scale only: always the most frequent size.
    config = model.config.sampling.model_copy(update={"top_k": {"size": 1}})
    drawn = [generate(model.tokenizer, model.transformer, 6, config=config).state.target for _ in range(2)]
    assert len(torch.cat(drawn).unique()) == 1
    result = invoke("sample", run, "-n", 1, "temperature={node: 0.8, edge: 0.9}", "--no-film", "--out", tmp_path / "o")
    assert result.exit_code == 0, result.output
    result = invoke("sample", run, "-n", 1, "temperature={nodes: 0.8}")
    assert result.exit_code == 2 and "did you mean 'node'?" in result.output and result.output.count("\n") == 1


def test_evaluation_on_the_validation_split(run: Path) -> None:
    result = invoke("eval", run, "--samples", 2, "--validation")
    assert result.exit_code == 0 and (run / "eval-validation.json").exists(), result.output


def test_completion_keeps_the_given_part_and_says_where_it_is(run: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "part.edgelist", tmp_path / "out"
    path.write_text("d a\na b\nb Zürich\nZürich d\n")
    result = invoke("edit", run, "--sample", path, "size=8", "-n", 3, "--out", out)
    assert result.exit_code == 0, result.output
    assert str(out / "single" / "graphs.npz") in result.stdout
    wanted = nx.Graph([("d", "a"), ("a", "b"), ("b", "Zürich"), ("Zürich", "d")])
    with np.load(out / "single" / "graphs.npz") as arrays:
        given = arrays["given"].reshape(3, 8).tolist()
        assert json.loads(str(arrays["metadata"]))["edited"] == "part.edgelist"
    for names, file in zip(given, sorted((out / "single").glob("*.graphml")), strict=True):
        graph = nx.read_graphml(file)
        assert len(graph) == 8 and graph.graph["seed"] == "0"
        where = dict(graph.nodes(data="given"))
        assert [where[str(i)] or "" for i in range(8)] == names
        inner = nx.relabel_nodes(graph.subgraph(node for node in graph if where[node]), where)
        assert nx.utils.edges_equal(inner.edges, wanted.edges) and set(inner) == set(wanted)
    assert read_folder(out / "single").graphs[0].given == ()
    assert "size=N" in invoke("edit", run, "--sample", path).output
    assert "leaves nothing to add" in invoke("edit", run, "--sample", path, "size=4").output


def test_a_model_that_draws_masses(small_file: Path, tmp_path: Path) -> None:
    """It samples requested sizes, and refuses to complete graphs."""
    result = invoke(
        "train", "-m", "graph", f"data={small_file}", *TINY, "tokenizer.masses=true", "--out", tmp_path / "r"
    )
    assert result.exit_code == 0, result.output
    assert nextscale.load(tmp_path / "r").generate(3, seed=0, size=9).samples.sizes.tolist() == [9] * 3
    (tmp_path / "part.edgelist").write_text("0 1\n1 2\n")
    result = invoke("edit", tmp_path / "r", "--sample", tmp_path / "part.edgelist", "size=8", "--out", tmp_path / "o")
    assert result.exit_code == 2 and "tokenizer.masses=true" in result.output and result.output.count("\n") == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", [("predict",), ("edit", "--box", "0,0,1,1")])
def test_a_graph_has_no_places_to_keep(run: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "part.edgelist").write_text("0 1\n1 2\n")
    result = invoke(command[0], run, "--sample", tmp_path / "part.edgelist", *command[1:], "--out", tmp_path / "out")
    assert result.exit_code == 2 and "only samples on a grid" in result.output, result.output
    assert not (tmp_path / "out").exists()


def test_settings_that_need_fixed_scales_are_refused(small_file: Path, tmp_path: Path) -> None:
    for setting, hint in (
        ("training.transformer.cache=true", "cache=false"),
        ("transformer.scale_embedding=true", "scale_embedding=false"),
        ("sampling.temperature=1,2", "give one"),
    ):
        result = invoke("train", "-m", "graph", f"data={small_file}", *TINY, setting, "--out", tmp_path / "no")
        assert result.exit_code == 2 and hint in result.output, result.output
    assert not (tmp_path / "no").exists()
