"""What runs on a model's device stays there: checked with a second device that this machine need not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graph_samples import random_batch

from nextscale.api import Model
from nextscale.conditioning import ConditionSpec
from nextscale.config.run import make_config
from nextscale.data import DataSplits
from nextscale.evaluation import codebook_usage, validation_loss
from nextscale.storage.models import new_transformer
from nextscale.testing.second_device import Elsewhere, second_device
from nextscale_graph.config import GraphTokenizerConfig, StemConfig
from nextscale_graph.evaluate import evaluate_samples, evaluate_tokenizer
from nextscale_graph.graphs import GraphBatch
from nextscale_graph.modality import GraphModality
from nextscale_graph.source import GraphSource, describe
from nextscale_graph.tokenizer import GraphTokenizer

SHUFFLED: dict[str, Any] = {"max_nodes": 12, "split_order": "random"}


@pytest.mark.parametrize("masses", [False, True])
@pytest.mark.parametrize("typed", [False, True])
def test_tokens_and_states_stay_on_the_device(masses: bool, typed: bool) -> None:
    batch = random_batch(3, 6, 8, typed)
    tokenizer = tokenizer_for(batch, masses=masses)
    expected = tokenizer.decode(tokenizer.states(tokenizer.encode(batch))[-1])
    with second_device() as device:
        tokenizer.to(device)
        pyramid = tokenizer.encode(batch.to(device))
        states = tokenizer.states(pyramid)
        for k in range(len(states) - 1):
            assert isinstance(tokenizer.scale_input(states[k], k).legal, Elsewhere)
        decoded = tokenizer.decode(states[-1])
        assert decoded.edges.tolist() == expected.edges.tolist()


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("typed", [False, True])
def test_drawing_and_evaluation(typed: bool, refined: bool) -> None:
    """As ``nextscale eval`` does: graphs are drawn on the device and compared with data that is not on it."""
    data = data_of(random_batch(5, 12, 7, typed))
    tokenizer = GraphTokenizer(GraphTokenizerConfig(stem=StemConfig(layers=1), **SHUFFLED), data.description)
    model = model_of(tokenizer, data, refiner={"depth": 1} if refined else None)
    with second_device() as device:
        move(model, device)
        drawn = model.generate(5, batch_size=3, size=6, return_steps=True)
        assert isinstance(drawn.samples.edges, Elsewhere) and drawn.samples.sizes.tolist() == [6] * 5
        assert evaluate_tokenizer(tokenizer, data)["lossless"] == 1
        assert evaluate_samples(drawn.samples, data)["mean_nodes"] == 6


@pytest.mark.parametrize("kind", ["plain", "in steps", "refined"])
@pytest.mark.parametrize("typed", [False, True])
def test_losses_on_held_out_data(kind: str, typed: bool) -> None:
    """Also of ``nextscale eval``: they are as on the CPU, and graphs drawn token by token have a bound."""
    data = data_of(random_batch(4, 9, 6, typed))
    tokenizer = GraphTokenizer(GraphTokenizerConfig(stem=StemConfig(layers=1), **SHUFFLED), data.description)
    in_scale_steps = kind == "in steps"
    settings = {"in_scale_steps": in_scale_steps, "refiner": {"depth": 1} if kind == "refined" else None}
    here = model_of(tokenizer, data, **settings)
    expected = [validation_loss(here, data), codebook_usage(tokenizer, data)]
    with second_device() as device:
        move(here, device)
        found = [validation_loss(here, data), codebook_usage(tokenizer, data)]
    # Logits of a fresh head nearly tie, so rounding decides which token is the likeliest: accuracies are left out.
    for there, each in zip(found, expected, strict=True):
        assert there.keys() == each.keys()
        told = [key for key in each if not key.startswith("accuracy")]
        assert [there[key] for key in told] == pytest.approx([each[key] for key in told], rel=1e-5)
    assert {key for key in found[0] if "per_" in key} == {f"nats_per_sample{'_bound' if in_scale_steps else ''}"}


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


def model_of(tokenizer: GraphTokenizer, data: DataSplits, **transformer: Any) -> Model:
    """A model with random weights."""
    settings = {"width": 16, "depth": 1, "positions": "rotary", "scale_embedding": False, **transformer}
    config = make_config(GraphModality.name, {"transformer": settings}, "test")
    network = new_transformer(config.transformer, tokenizer, data.conditions).eval()
    return Model(GraphModality(), tokenizer, network, config)


def move(model: Model, device: torch.device) -> None:
    model.tokenizer.to(device)
    model.transformer.to(device)
