"""``nextscale.train``: the same as the command line, and samples from memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

import nextscale
from nextscale.config.run import load_config, load_run_config
from nextscale.errors import ConfigError, DataError, NextscaleError

QUICK = {
    "training.tokenizer.steps": 4, "training.transformer.steps": 4, "training.device": "cpu", "transformer.depth": 1,
    "transformer.width": 32, "transformer.heads": 2, "tokenizer.width": 8, "tokenizer.channels": 8,
}  # fmt: skip
DRAW = np.random.default_rng(0)


def images(number: int = 24, side: int = 8) -> np.ndarray:
    return DRAW.integers(0, 256, (number, side, side, 3), np.uint8)


def test_images_from_memory(tmp_path: Path) -> None:
    labels = ["cat", "dog"] * 12
    model = nextscale.train(images=images(), labels=labels, folder=tmp_path / "run", settings=QUICK)
    assert model is not None and model.description["classes"] == ["cat", "dog"]
    assert model.generate(2, label="dog").samples.shape == (2, 3, 8, 8)
    assert load_run_config(tmp_path / "run").data.source == str(tmp_path / "run-data.npz")


def test_samples_from_memory_within_a_time(time_is_short: None, tmp_path: Path) -> None:
    """Training again with resume keeps what was chosen the first time."""
    given = {"images": images(), "folder": tmp_path / "run", "minutes": 0.3}
    assert nextscale.train(stage="tokenizer", **given) is None
    chosen = load_run_config(tmp_path / "run")
    assert nextscale.train(resume="auto", **given) is not None
    kept = load_run_config(tmp_path / "run")
    assert kept.transformer == chosen.transformer and kept.tokenizer == chosen.tokenizer


def test_clips_from_memory(tmp_path: Path) -> None:
    clips = [DRAW.integers(0, 256, (17, 16, 16), np.uint8) for _ in range(6)]
    settings = {**QUICK, "tokenizer.clips": "null", "data.validation": 0.3}
    model = nextscale.train(clips=clips, folder=tmp_path / "run", settings=settings)
    assert model is not None and model.generate(1).samples.shape == (1, 1, 17, 16, 16)


def test_graphs_from_memory(tmp_path: Path) -> None:
    """With an attribute, and a number per graph that they are drawn for."""
    graphs = [nx.path_graph(4 + i % 3) for i in range(20)]
    for graph in graphs:
        nx.set_node_attributes(graph, {node: "end" if graph.degree(node) == 1 else "inner" for node in graph}, "kind")
    settings = {"training.transformer.steps": 3, "tokenizer.stem.layers": 1, "transformer.width": 16}
    ends = [float(len(graph)) for graph in graphs]
    run = tmp_path / "run"
    model = nextscale.train(graphs=graphs, labels={"length": ends}, folder=run, settings=settings)
    assert model is not None and [spec.name for spec in model.conditions] == ["size", "length"]
    drawn = model.generate(2, length=5.0).samples.to_networkx()
    assert {kind for graph in drawn for _, kind in graph.nodes(data="kind")} <= {"end", "inner"}
    with pytest.raises(DataError, match="not int"):
        nextscale.train(graphs=[1, 2], folder=tmp_path / "other")


def test_a_configuration(tiny: Any, tmp_path: Path) -> None:
    config = load_config("image", overrides=tiny())
    assert nextscale.train(config, tmp_path / "run", "tokenizer") is None
    assert nextscale.train(config, tmp_path / "run", resume="auto") is not None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs a modality, or samples: clips, graphs, images"),
        ({"pictures": images()}, "unknown argument of nextscale.train 'pictures'"),
        ({"images": images(), "clips": images()}, "one kind of samples"),
        ({"images": images(), "modality": "graph"}, "images are samples of modality image, not graph"),
        ({"modality": "image", "labels": [1]}, "labels need samples"),
        ({"images": [np.zeros((3, 3)), np.zeros((4, 4))]}, "images must be an array, or a list of arrays of one shape"),
        ({"images": [object()]}, "images must hold numbers"),
        ({"images": 3}, "images must be an array"),
        ({"images": images().astype(np.int64) + 1000}, "run-data.npz"),
        ({"images": images(), "labels": [1, 2]}, "run-data.npz"),
    ],
)
def test_what_is_wrong_is_said(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError, NextscaleError), match=message) as error:
        nextscale.train(folder=tmp_path / "run", settings=QUICK, **given)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_configuration_and_its_parts(tiny: Any, tmp_path: Path) -> None:
    config = load_config("image", overrides=tiny())
    with pytest.raises(ConfigError, match="not both"):
        nextscale.train(config, tmp_path / "run", minutes=3)
    with pytest.raises(ConfigError, match="folder"):
        nextscale.train(config)
