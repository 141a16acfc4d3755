"""Evaluation of a trained run: reconstruction, codebook, validation loss and samples. Written to RUN/eval.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from nextscale import plugins
from nextscale.api import Model, load
from nextscale.config.run import load_run_config, parse_options
from nextscale.config.sections import TransformerStageConfig
from nextscale.data import DataSplits
from nextscale.device import pick_device
from nextscale.modality import EvaluationContext
from nextscale.storage.files import write_json_atomic
from nextscale.storage.models import load_tokenizer
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.training.tokenizer_stage import validation_batches
from nextscale.training.transformer_stage import TransformerObjective

HELD_OUT = 2048
"""Number of held-out samples used to measure codebook usage and validation loss."""


def evaluate(
    run: str | Path,
    samples: int = 1000,
    guidance: Sequence[float] = (0.0, 2.0),
    seed: int = 0,
    device: str = "auto",
    options: Sequence[str] = (),
    reconstruction_only: bool = False,
    repeats: int = 1,
    sampling: Mapping[str, Any] | None = None,
    validation: bool = False,
) -> dict[str, Any]:
    """Measure a run and write ``eval.json`` into it.

    Args:
        samples: number of samples to draw at each ``guidance``, spread evenly over classes.
        guidance: guidance strengths to draw samples at. Without conditions that can guide, samples are drawn at 0 only.
        seed: seed of the samples.
        repeats: number of times to draw, with seeds ``seed``, ``seed`` + 1, ... Each measure is then the mean, and
            ``NAME_std`` its standard deviation.
        sampling: fields of ``SamplingConfig`` that differ from the run's.
        options: options of the modality's own measurements, each ``eval.KEY=VALUE`` (``ModalityConfig.evaluation``).
        reconstruction_only: measure the tokenizer only.
        validation: measure on the validation split even if there is a test split, in order to choose settings. The
            file is then ``eval-validation.json``.

    Returns:
        ``reconstruction`` (measured by the modality), ``codebook`` (usage and perplexity, per scale and in total),
        ``validation`` (loss in nats and accuracy of the transformer, per scale and in total), ``samples`` (by guidance;
        every distance beside its real-against-real floor) and ``model`` (measured by the modality, if it has such
        measurements). The last three are present only if the run holds a transformer.

    Raises:
        CheckpointError, DataError, ConfigError: the run, its data or the options are missing or wrong.
    """
    run, where, console = Path(run), pick_device(device), Console(stderr=True)
    tokenizer = load_tokenizer(run, where)
    config = load_run_config(run)
    modality = plugins.modality(config.modality)
    chosen = parse_options(config.modality, options)
    context = EvaluationContext(where, run / "eval-cache")
    data = modality.open_data(config.data)
    if validation:
        data = replace(data, test=None)
    results: dict[str, Any] = {}
    with console.status("reconstruction"):
        results["reconstruction"] = modality.evaluate_tokenizer(tokenizer, data, chosen, context)
        results["codebook"] = codebook_usage(tokenizer, data)
    if not reconstruction_only and (run / "transformer" / "model.safetensors").exists():
        model = load(run, device)
        with console.status("validation loss"):
            results["validation"] = validation_loss(model, data)
        with console.status("predictions"):
            found = modality.evaluate_model(model, data, chosen, context)
        if found:
            results["model"] = found
        results["samples"] = {}
        guides = any(spec.embedded for spec in model.conditions)
        for value in guidance if guides else (0.0,):
            rounds = []
            for again in range(repeats):
                with console.status(f"{samples} samples at guidance {value:g}"):
                    settings_now = {**(sampling or {}), "guidance": value}
                    drawn = model.generate(samples, seed=seed + again, sampling=settings_now)
                with console.status(f"quality of samples at guidance {value:g}"):
                    rounds.append(modality.evaluate_samples(drawn.samples, drawn.conditions, data, chosen, context))
            results["samples"][f"{value:g}"] = rounds[0] if repeats == 1 else mean_and_spread(rounds)
    write_json_atomic(eval_file(run, validation), results)
    return results


def eval_file(run: Path, validation: bool = False) -> Path:
    return run / ("eval-validation.json" if validation else "eval.json")


def mean_and_spread(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every number over ``rounds``, and its standard deviation as ``NAME_std``. Values that are not numbers
    are taken from the first round."""
    results: dict[str, Any] = {}
    for key, first in rounds[0].items():
        values = [each.get(key) for each in rounds]
        if isinstance(first, Mapping):
            results[key] = mean_and_spread(values)  # type: ignore[arg-type]
        elif isinstance(first, int | float) and not isinstance(first, bool):
            numbers = torch.tensor([float(value) for value in values if value is not None], dtype=torch.float64)
            results[key], results[f"{key}_std"] = float(numbers.mean()), float(numbers.std())
        else:
            results[key] = first
    return results


@torch.inference_mode()
def codebook_usage(tokenizer: MultiscaleTokenizer, data: DataSplits) -> dict[str, float]:
    """Share of the vocabulary that held-out samples use, and perplexity exp(entropy), per scale and in total."""
    size = tokenizer.token_space.vocabulary
    counts: dict[str, Tensor] = {}
    source = data.held_out
    for indices in validation_batches(len(source), HELD_OUT):
        pyramid = tokenizer.encode(source.batch(indices, None).to(tokenizer.device).samples)
        for k, name in enumerate(tokenizer.scale_names(len(pyramid.schedule))):
            tokens = pyramid.scale(k)
            if pyramid.mask is not None:
                tokens = tokens[pyramid.mask[:, pyramid.schedule.span(k)]]
            found = torch.bincount(tokens.flatten().cpu(), minlength=size).float()
            counts[name] = counts[name] + found if name in counts else found
    usage: dict[str, float] = {}
    for name, counts_V in [*counts.items(), ("total", torch.stack(list(counts.values())).sum(0))]:
        shares_V = counts_V / counts_V.sum().clamp_min(1)
        usage[f"used_{name}"] = float((counts_V > 0).float().mean())
        usage[f"perplexity_{name}"] = float(torch.special.entr(shares_V).sum().exp())
    return usage


@torch.inference_mode()
def validation_loss(model: Model, data: DataSplits) -> dict[str, float]:
    """Teacher-forced loss (nats per token) and accuracy on the validation split, in total and per scale."""
    objective = TransformerObjective(model.transformer, model.tokenizer, TransformerStageConfig())
    sums: dict[str, float] = {}
    batches = validation_batches(len(data.validation), HELD_OUT)
    for indices in batches:
        scalars = objective.validate(model.transformer, data.validation.batch(indices, None).to(model.tokenizer.device))
        for key, value in scalars.items():
            sums[key] = sums.get(key, 0.0) + float(value) * len(indices)
    number = sum(map(len, batches))
    return {key: value / number for key, value in sums.items()}
