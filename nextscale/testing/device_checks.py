"""Invariant 28 of a modality: whatever is computed on a model's device stays there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale.api import Model
from nextscale.config.sections import RunConfig, SamplingConfig, TransformerStageConfig
from nextscale.data import Batch, DataSplits
from nextscale.modality import EvaluationContext, Modality
from nextscale.objective import Objective
from nextscale.randomness import Draws, sample_seeds
from nextscale.testing.invariants import holds
from nextscale.testing.tiny import transformer_for
from nextscale.tokens.capabilities import EditsPlaces
from nextscale.training.tokenizer_stage import draw_reconstructions
from nextscale.training.transformer_stage import TransformerObjective

SAMPLES = 4


@holds("device")
def check_device(
    modality: Modality, config: Any, splits: DataSplits, options: Any, device: torch.device, folder: Path
) -> None:
    """28. On ``device``, both stages train, and the model samples, edits, writes and is evaluated. Its loss is that on
    the CPU.

    ``device`` is a real one, or the ``second_device.second_device``.
    """
    tokenizer = modality.build_tokenizer(config, splits.description)
    tokenizer.description = splits.description  # as in a run
    rows = np.arange(SAMPLES) % len(splits.train)
    batch = splits.train.batch(rows, sample_seeds(0, rows))
    objectives = modality.tokenizer_objectives(tokenizer, config)
    tokenizer.to(device)
    shared = batch.to(device)
    for objective in objectives:  # all before the first step, because one may look at the model of another
        objective.to(device).train()
    for objective in objectives:
        _step(objective, shared, device)
    tokenizer.to("cpu").eval()
    settings: dict[str, Any] = {"positions": "rotary", "scale_embedding": False, "in_scale_steps": True}
    transformer = transformer_for(tokenizer, splits.conditions, **settings)
    learner = TransformerObjective(transformer, tokenizer, TransformerStageConfig())
    with torch.no_grad():
        tokens = Batch(tokenizer.encode(batch.samples), batch.conditions)
        expected = float(learner.validate(transformer, tokens)["loss"])
        tokenizer.to(device)
        found = float(learner.to(device).validate(transformer, tokens.to(device))["loss"])
    assert abs(found - expected) <= 1e-2 * expected + 1e-6, (
        f"the loss is {found} on {device}, and {expected} on the CPU"
    )
    learner.train()
    _step(learner, batch.to(device), device)
    model = Model(modality, tokenizer, transformer.eval(), RunConfig.model_construct(sampling=SamplingConfig()))
    _use(model, splits, options, device, folder)


def _step(objective: Objective, batch: Batch, device: torch.device) -> None:
    """As ``training.loop`` does it; the optimizer is torch's own affair."""
    draws = Draws(0, 0, slice(0, SAMPLES), SAMPLES, device)
    with torch.enable_grad():
        loss, scalars = objective(batch, 10**9, draws)
        loss.backward()
    objective.after_step(0, draws)
    with torch.no_grad():
        validated = objective.validate(objective.model.eval(), batch)
    for key, value in {"loss": loss.detach(), **scalars, **validated}.items():
        assert np.isfinite(float(value)), f"{objective.name}: {key} is {float(value)} on {device}"


def _use(model: Model, splits: DataSplits, options: Any, device: torch.device, folder: Path) -> None:
    modality, description = model.modality, splits.description
    sampling = {"steps": 2, "guidance": 1.0, "top_p": 0.9}
    drawn = model.generate(SAMPLES, sampling=sampling, return_steps=True)
    modality.write_samples(drawn.samples, folder / "samples", description)
    modality.write_grid(drawn.samples, folder / "grid", description)
    modality.write_film(drawn.steps, folder / "film", description)
    draw_reconstructions(modality, model.tokenizer, splits, folder / "reconstructions")
    rows = np.arange(SAMPLES) % len(splits.validation)
    held = splits.validation.batch(rows, None).samples
    if isinstance(model.tokenizer, EditsPlaces) and isinstance(held, Tensor):
        keep = torch.zeros(held.shape[2:], dtype=torch.bool)
        keep[: -(-len(keep) // 2)] = True
        ways: list[dict[str, Any]] = [{"paste": True, "feather": 1}, {"guess": True}, {"replay": True}]
        for how in ways:
            model.edit(held, keep, sampling=sampling, **how)
    context, measured = EvaluationContext(device), (splits, options)
    modality.evaluate_tokenizer(model.tokenizer, *measured, context)
    modality.evaluate_model(model, *measured, context)
    modality.evaluate_samples(drawn.samples.to("cpu"), drawn.conditions, *measured, context)
