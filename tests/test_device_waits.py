"""Where the host waits for the device: never in a training step, and once for a batch in a draw with a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nextscale import plugins
from nextscale.config.run import load_config
from nextscale.data import Batch
from nextscale.errors import TrainingError
from nextscale.randomness import Draws
from nextscale.sampling.kept import draw_at, places_of, priorities
from nextscale.sampling.reveal import reveal_groups
from nextscale.storage.models import new_transformer
from nextscale.storage.scorer import new_scorer
from nextscale.testing.second_device import second_device, waits
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.space import Codes
from nextscale.training.log import RunLog
from nextscale.training.loop import Trainer
from nextscale.training.scorer_stage import ScorerStage
from nextscale.training.stage import Stage
from nextscale.training.tokenizer_stage import TokenizerStage
from nextscale.training.transformer_stage import TransformerStage

SMALL = {
    "tokenizer.width": 8, "tokenizer.channels": 8, "tokenizer.quantizer.codes": 16, "transformer.depth": 1,
    "transformer.width": 32, "transformer.heads": 2, "training.tokenizer.ema": 0.9, "training.transformer.ema": 0.9,
    "training.tokenizer.precision": "fp32", "training.transformer.precision": "fp32",
    "training.tokenizer.batch_size": 4, "training.transformer.batch_size": 4, "training.tokenizer.log_every": 3,
    "training.tokenizer.steps": 7, "training.tokenizer.validate_every": 7, "training.tokenizer.checkpoint_every": 7,
    "training.tokenizer.validation_samples": 4, "scorer.depth": 1, "scorer.width": 16, "scorer.heads": 1,
    "training.scorer.batch_size": 4, "training.scorer.precision": "fp32",
}  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tokenizer": ("tokenizer", {}),
    "moving averages": ("tokenizer", {"tokenizer.quantizer.update": "ema", "tokenizer.quantizer.scale_dropout": 0.5}),
    "adversarial": ("tokenizer", {"tokenizer.adversarial.weight": 0.1, "tokenizer.adversarial.width": 4}),
    "accumulated": ("tokenizer", {"training.tokenizer.accumulate": 2}),
    "transformer": ("transformer", {"transformer.drop_path": 0.1}),
    "codebook head": ("transformer", {"transformer.head": "codebook", "transformer.attention": "markov"}),
    "in steps": ("transformer", {"transformer.in_scale_steps": True}),
    "refined": ("transformer", {"transformer.refiner.depth": 1}),
    "weighted": ("transformer", {"training.transformer.scale_weights": [1, 1, 2, 2]}),
    "scorer": ("scorer", {"training.scorer.condition_drop": 0.5, "sampling.guidance": 1.5, "sampling.top_k": 5}),
    "scorer of a refiner": ("scorer", {"transformer.refiner.depth": 1}),
    "scorer of in-scale steps": ("scorer", {"transformer.in_scale_steps": True}),
}


def trainer(stage: str, settings: dict[str, Any], folder: Path, device: torch.device) -> Trainer:
    config = load_config("image", "digits", None, [f"{key}={value}" for key, value in {**SMALL, **settings}.items()])
    modality = plugins.modality("image")
    data = modality.open_data(config.data)
    torch.manual_seed(0)
    tokenizer = modality.build_tokenizer(config.tokenizer, data.description)
    made: Stage
    if stage == "tokenizer":
        made = TokenizerStage(modality, tokenizer, config.tokenizer, data, config.training.tokenizer, 0)
    else:
        transformer = new_transformer(config.transformer, tokenizer, data.conditions)
        common = modality, tokenizer.to(device), transformer.to(device)
        if stage == "transformer":
            made = TransformerStage(*common, data, None, config.training.transformer, config.sampling, 0)
        else:
            scorer = new_scorer(config.scorer, tokenizer, transformer)
            made = ScorerStage(*common, scorer, data, None, config.training.scorer, config.sampling, 0)
    return Trainer(made, folder / "checkpoints", RunLog(folder), 0, device)


@pytest.mark.parametrize(("stage", "settings"), VARIANTS.values(), ids=VARIANTS)
def test_a_step_never_waits(stage: str, settings: dict[str, Any], tmp_path: Path) -> None:
    with second_device() as device:
        training = trainer(stage, settings, tmp_path, device)
        stepper = training.stepper
        stepper.train_step(stepper.read(0))  # makes what is kept on the device from then on
        with waits() as waited:
            metrics = stepper.train_step(stepper.read(1))
        assert waited == []
        with waits() as waited:
            training._read(metrics)
        assert waited == ["tolist"], "all scalars are read at once"


def test_scalars_are_read_when_they_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = trainer("tokenizer", {}, tmp_path, torch.device("cpu"))
    read: list[int] = []
    real = training._read
    monkeypatch.setattr(training, "_read", lambda metrics: (read.append(training.step), real(metrics))[1])
    training.restore(None)
    training.run()
    assert read == [3, 6, 7]


def test_the_step_whose_loss_was_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the loss is read later."""
    training = trainer("tokenizer", {}, tmp_path, torch.device("cpu"))
    real = training.stepper.read

    def read(step: int) -> list[Batch]:
        batches = real(step)
        return [Batch(each.samples * (np.nan if step == 3 else 1), each.conditions) for each in batches]

    monkeypatch.setattr(training.stepper, "read", read)
    training.restore(None)
    with pytest.raises(TrainingError, match="tokenizer loss is nan at step 4: training stopped, no checkpoint"):
        training.run()


def test_copies_to_a_gpu_are_pinned_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """There need be none: what is called on the way is recorded."""
    called: list[Any] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: (called.append("pinned"), tensor)[1])
    monkeypatch.setattr(Tensor, "to", lambda tensor, device, **how: (called.append((str(device), how)), tensor)[1])
    pyramid = TokenPyramid(torch.zeros(2, 5), Schedule.of([(5,)]), torch.ones(2, 5, dtype=torch.bool))
    for samples in (pyramid, torch.zeros(2, 3)):
        batch = Batch(samples, {"label": torch.zeros(2)})
        for device in ("cpu", "cuda:1"):
            called.clear()
            batch.to(device)
            number = 3 if samples is pyramid else 2
            copied = ["pinned", ("cuda:1", {"non_blocking": True})] if device != "cpu" else [("cpu", {})]
            assert called == copied * number
    called.clear()
    Draws(0, 0, slice(0, 2), 2, "cuda").uniform()
    assert called == ["pinned", ("cuda", {"non_blocking": True})]


@pytest.mark.parametrize("number", [1, 6])
def test_masks_are_read_once_for_a_batch(number: int) -> None:
    mask = torch.rand(number, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    with second_device() as device:
        there, logits = mask.to(device), torch.zeros(number, 5, 3, device=device)
        generators = [torch.Generator(device).manual_seed(i) for i in range(number)]
        with waits() as waited:
            places = places_of(there)
            tokens = draw_at(places, Codes(3), logits, generators, (1.0, 2, 0.9))
            priority = priorities(places, (number, 5), generators, device)
        assert len(waited) == 1
        assert not tokens.cpu()[~mask].any() and ((priority.cpu() > 0) == mask).all()
        pyramid = TokenPyramid(tokens, Schedule.of([(2,), (3,)]), there)
        draws = Draws(0, 0, slice(0, number), number, device)
        with waits() as waited:
            reveal_groups(pyramid, torch.zeros_like(tokens), draws)
        assert len(waited) == 2, "the mask and the number of groups"
