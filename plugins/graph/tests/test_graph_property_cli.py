"""A model of graphs with attributes and properties, through the command line: trained, drawn, read, measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import nextscale
from nextscale_cli.main import app
from nextscale_graph.config import GraphDataConfig
from nextscale_graph.data import open_graphs

TINY = [
    "tokenizer.max_nodes=12", "tokenizer.ratio=0.3", "tokenizer.stem.layers=1", "transformer.width=16",
    "training.transformer.steps=4", "training.transformer.batch_size=4", "training.transformer.validate_every=2",
    "training.transformer.checkpoint_every=2", "training.device=cpu",
]  # fmt: skip


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("property")
    (folder / "data").mkdir()
    for i in range(24):
        graph = nx.gnp_random_graph(3 + i % 5, 0.5, seed=i)
        graph.add_edge(0, 1)
        nx.set_node_attributes(graph, {node: ["red", "blue"][(node + i) % 2] for node in graph}, "colour")
        nx.set_edge_attributes(graph, {edge: (sum(edge) + i) / 10 for edge in graph.edges}, "weight")
        graph.graph |= {"degree": 2 * graph.number_of_edges() / len(graph), "side": ["left", "right"][i % 2]}
        if i % 3 == 0:
            graph.add_edge(0, 0, weight=1.0)
        nx.write_graphml(graph, folder / "data" / f"{i}.graphml")
    settings = [f"data={folder / 'data'}", "data.property=degree,side", "data.bins=4"]
    result = invoke("train", "-m", "graph", *settings, *TINY, "--out", folder / "run")
    assert result.exit_code == 2 and "self-loop at node 0" in result.output and result.output.count("\n") == 1
    assert "data.clean=loops" in result.output and not (folder / "run").exists()
    result = invoke("train", "-m", "graph", *settings, "data.clean=loops", *TINY, "--out", folder / "run")
    assert result.exit_code == 0 and "cleaned: 8 self-loops dropped" in result.output, result.output
    return folder / "run"


def test_samples_carry_what_was_asked_for(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke("sample", run, "-n", 4, "degree=1.3", "side=right", "size=6", "--out", out)
    assert result.exit_code == 0, result.output
    known = open_graphs(GraphDataConfig(source=str(run.parent / "data"), clean="loops", bins=4)).description
    values = set(known["edge_attributes"][0]["values"])
    for path in sorted((out / "single").glob("*.graphml")):
        graph = nx.read_graphml(path)
        assert graph.graph["degree"] == 1.3 and graph.graph["side"] == "right" and len(graph) == 6
        assert {colour for _, colour in graph.nodes(data="colour")} <= {"red", "blue"}
        assert {weight for *_, weight in graph.edges(data="weight")} <= values
    again = open_graphs(GraphDataConfig(source=str(out / "single" / "graphs.npz"), property="degree,side", test=0))
    assert again.train.batch(np.arange(1), None).samples.graph_values.tolist() == [[1.3, 0.0]]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("degree=high", "degree: 'high' is not a number; give a number"),
        ("degree=1,2,3", "degree has the shape (2, 3): give a number, or a number for each of the 2 samples"),
        ("degree=nan", "degree has numbers that are not finite"),
        ("side=middle", "unknown side 'middle'"),
        ("degre=1", "did you mean 'degree'"),
    ],
)
def test_values_that_a_property_cannot_have(run: Path, setting: str, message: str) -> None:
    result = invoke("sample", run, "-n", 2, setting)
    assert result.exit_code == 2 and message in result.output and result.output.count("\n") == 1, result.output


def test_every_scale_reads_the_condition(run: Path) -> None:
    """Sizes, components, counts, nodes, edges and attributes are all scored otherwise for another value. The weights
    are random, because some begin as zeros."""
    model = nextscale.load(run)
    data = open_graphs(model.config.data)  # type: ignore[arg-type]
    batch = data.train.batch(np.arange(3), None)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    pyramid = model.tokenizer.encode(batch.samples)
    inputs = model.tokenizer.teacher_forcing(pyramid, batch.conditions)
    logits = [
        model.transformer(inputs, model.transformer.conditioner({"degree": torch.full((3, 1), value)}, 3))
        for value in (0.5, 3.0)
    ]
    assert inputs.mask is not None
    names = model.tokenizer.scale_names(len(pyramid.schedule))
    for k, name in enumerate(names):
        span = pyramid.schedule.span(k)
        if bool(inputs.mask[:, span].any()):
            apart = (logits[0] - logits[1])[:, span][inputs.mask[:, span]]
            assert float(apart.abs().max()) > 1e-6, name


def test_attributes_are_measured(run: Path) -> None:
    result = invoke("eval", run, "--samples", 4, "temperature={edge weight: 0.9}")
    assert result.exit_code == 0, result.output
    found = json.loads((run / "eval.json").read_text())
    assert found["reconstruction"]["lossless"] == 1
    assert {"tv_node_colour", "floor_tv_edge_weight"} <= found["samples"]["0"].keys()
    assert "loss/edge weight" in found["validation"]
