"""What runs on a model's device stays there: checked with a second device that this machine need not have."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_devices import Elsewhere, move, second_device
from graph_samples import random_batch

from nextscale.api import Model
from nextscale.conditioning import ConditionSpec
from nextscale.config.run import make_config
from nextscale.data import DataSplits
from nextscale.evaluation import codebook_usage, validation_loss
from nextscale.storage.models import new_transformer
from nextscale_graph.config import GraphTokenizerConfig, StemConfig
from nextscale_graph.evaluate import evaluate_samples, evaluate_tokenizer
from nextscale_graph.graphs import GraphBatch
from nextscale_graph.modality import GraphModality
from nextscale_graph.source import GraphSource, describe
from nextscale_graph.tokenizer import GraphTokenizer


class CPUGenerator(torch.Generator):
    """Takes any device and stays on the CPU."""

    def __new__(cls, device: Any = None) -> CPUGenerator:
        return super().__new__(cls)


@pytest.mark.parametrize("masses", [False, True])
@pytest.mark.parametrize("typed", [False, True])
def test_tokens_and_states_stay_on_the_device(masses: bool, typed: bool) -> None:
    batch = random_batch(3, 6, 8, typed)
    tokenizer = tokenizer_for(batch, masses=masses)
    expected = tokenizer.decode(tokenizer.states(tokenizer.encode(batch))[-1])
    with second_device() as device:
        move(tokenizer)
        pyramid = tokenizer.encode(batch.to(device))
        states = tokenizer.states(pyramid)
        for k in range(len(states) - 1):
            assert isinstance(tokenizer.scale_input(states[k], k).legal, Elsewhere)
        decoded = tokenizer.decode(states[-1])
        assert decoded.edges.tolist() == expected.edges.tolist()


@pytest.mark.parametrize("typed", [False, True])
def test_drawing_and_evaluation(typed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``nextscale eval`` does: graphs are drawn on the device and compared with data that is not on it."""
    data = data_of(random_batch(5, 12, 7, typed))
    tokenizer = GraphTokenizer(GraphTokenizerConfig(max_nodes=12, stem=StemConfig(layers=1)), data.description)
    model = model_of(tokenizer, data, monkeypatch)
    with second_device():
        drawn = model.generate(5, batch_size=3, size=6, return_steps=True)
        assert isinstance(drawn.samples.edges, Elsewhere) and drawn.samples.sizes.tolist() == [6] * 5
        assert evaluate_tokenizer(tokenizer, data)["lossless"] == 1
        assert evaluate_samples(drawn.samples, data)["mean_nodes"] == 6


@pytest.mark.parametrize("in_scale_steps", [False, True])
@pytest.mark.parametrize("typed", [False, True])
def test_losses_on_held_out_data(in_scale_steps: bool, typed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of ``nextscale eval``: they are as on the CPU, and graphs drawn token by token have a bound."""
    data = data_of(random_batch(4, 9, 6, typed))
    tokenizer = GraphTokenizer(GraphTokenizerConfig(max_nodes=12, stem=StemConfig(layers=1)), data.description)
    settings = {"in_scale_steps": in_scale_steps}
    here = model_of(tokenizer, data, monkeypatch, elsewhere=False, **settings)
    expected = [validation_loss(here, data), codebook_usage(tokenizer, data)]
    for module in (here.tokenizer, here.transformer):
        move(module)
    # torch knows no automatic precision for this device; it is off here anyway.
    monkeypatch.setattr(torch, "autocast", lambda *told, **named: nullcontext())
    with second_device():
        found = [validation_loss(here, data), codebook_usage(tokenizer, data)]
    # Logits of a fresh head nearly tie, so rounding decides which token is the likeliest: accuracies are left out.
    for there, each in zip(found, expected, strict=True):
        assert there.keys() == each.keys()
        told = [key for key in each if not key.startswith("accuracy")]
        assert [there[key] for key in told] == pytest.approx([each[key] for key in told], rel=1e-5)
    assert {key for key in found[0] if "per_" in key} == {f"nats_per_sample{'_bound' if in_scale_steps else ''}"}


def test_completion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As ``nextscale edit`` does: the given part, read from a file, and what was drawn end up on one sheet."""
    data = data_of(random_batch(6, 12, 7))
    tokenizer = GraphTokenizer(GraphTokenizerConfig(max_nodes=12, stem=StemConfig(layers=1)), data.description)
    model = model_of(tokenizer, data, monkeypatch)
    (tmp_path / "part.edges").write_text("a b\nb c\nc a\n")
    part, _ = model.modality.read_sample(tmp_path / "part.edges", tokenizer)
    with second_device():
        copies = model.modality.concatenate([part] * 3)
        drawn = model.complete(copies, size=6, return_steps=True, sampling={"require": "planar"})
        sheet = model.modality.concatenate([part, drawn.samples])
        assert sheet.sizes.tolist() == [3, 6, 6, 6] and not isinstance(sheet.edges, Elsewhere)
        for path in (
            model.modality.write_grid(sheet, tmp_path / "grid", data.description),
            model.modality.write_film([copies, *drawn.steps], tmp_path / "film", data.description),
            *model.modality.write_samples(drawn.samples, tmp_path / "single", data.description),
        ):
            assert path.stat().st_size > 0


def test_the_second_device_refuses_mixtures() -> None:
    with second_device() as device:
        there = torch.zeros(3, device=device)
        for mixed in (lambda: there + torch.zeros(3), lambda: torch.cat([torch.zeros(3), there]), there.numpy):
            with pytest.raises((RuntimeError, TypeError)):
                mixed()
        assert (there + 1).cpu().tolist() == [1, 1, 1]


def tokenizer_for(batch: GraphBatch, **settings: Any) -> GraphTokenizer:
    return GraphTokenizer(GraphTokenizerConfig.model_validate({"max_nodes": 12, **settings}), describe_all(batch))


def describe_all(batch: GraphBatch) -> dict[str, Any]:
    names = (["a", "b", "c"], ["x", "y"]) if batch.node_types is not None else ([], [])
    description = describe([batch[[i]] for i in range(len(batch))], *names)
    return description | {"largest": int(batch.sizes.max()), "kind": "none"}


def data_of(batch: GraphBatch) -> DataSplits:
    singles = [batch[[i]] for i in range(len(batch))]
    train, held = GraphSource(singles[:6]), GraphSource(singles[6:])
    return DataSplits(train, held, None, (ConditionSpec(name="size", kind="count", size=100),), describe_all(batch))


def model_of(
    tokenizer: GraphTokenizer,
    data: DataSplits,
    monkeypatch: pytest.MonkeyPatch,
    elsewhere: bool = True,
    **transformer: Any,
) -> Model:
    """A model with random weights on the second device, whose random numbers come from the CPU."""
    monkeypatch.setattr(torch, "Generator", CPUGenerator)
    settings = {"width": 16, "depth": 1, "positions": "rotary", "scale_embedding": False, **transformer}
    config = make_config(GraphModality.name, {"transformer": settings}, "test")
    network = new_transformer(config.transformer, tokenizer, data.conditions).eval()
    if elsewhere:
        move(tokenizer)
        move(network)
    return Model(GraphModality(), tokenizer, network, config)
