"""Choose a tokenizer: the distortion of what it decodes, against what its tokens cost a transformer.

Neither the distortion nor the number of tokens tells how well a transformer will do. Residual tokens may look like
noise, given the coarser ones, and then cost more than a larger number of tokens that resemble their neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nextscale import plugins
from nextscale.api import load
from nextscale.bench.compare import measures, spread, stored, training
from nextscale.bench.fair import Base, Comparison
from nextscale.bench.kinds import Kind
from nextscale.config.grid import ConvolutionalConfig
from nextscale.config.run import load_run_config, parse_options
from nextscale.device import pick_device
from nextscale.errors import ConfigError
from nextscale.evaluation import codebook_usage, validation_loss, without_nan
from nextscale.modality import EvaluationContext
from nextscale.storage.files import write_json_atomic
from nextscale.storage.models import load_tokenizer
from nextscale.training.tokenizer_stage import validation_batches
from nextscale.training.transformer_stage import NATS, NATS_BOUND

RATE = "rate.json"
ONE_BY_ONE = "one-by-one"
NOT_DISTORTION = (
    "kind", "seeds", "tokenizer", "tokenizer_steps", "steps", "tokens", "nats_per_sample", "nats_std", "perplexity"
)  # fmt: skip
"""Columns of ``rate_rows`` that measure no distortion."""


def both_orders(kinds: Sequence[Kind], base: Base) -> list[Kind]:
    """Each kind, followed by one that draws the same tokens one by one, if the kind can.

    Raises:
        ConfigError: settings of a kind are wrong.
    """
    found = []
    for kind in kinds:
        found.append(kind)
        tokenizer = base.configure(kind.settings).tokenizer
        if not isinstance(tokenizer, ConvolutionalConfig) or tokenizer.order != "scales":
            continue
        if tokenizer.quantizer.target == "residual":  # else, tokens make sense only scale by scale
            found.append(Kind(f"{kind.name}-{ONE_BY_ONE}", (*kind.settings, "tokenizer.order=raster")))
    return found


def rate(comparison: Comparison, seeds: int, samples: int, options: Sequence[str] = ()) -> dict[str, Any]:
    """Train what is not trained yet, measure it, and write ``results.json`` after every kind.

    Args:
        seeds: transformers per kind.
        samples: how many held-out samples are decoded and compared with real ones.
        options: ``eval.KEY=VALUE``, as ``nextscale eval`` takes them.

    Returns:
        what the file holds: what was compared and measured, and ``kinds``. Of each kind: its ``settings``, its
        ``tokenizer`` and ``seeds``; ``training`` of both stages; ``tokens`` per sample; ``reconstruction`` and
        ``codebook``, as ``nextscale eval`` measures them; ``decoded``, what the modality measures of samples, measured
        of decoded held-out samples; and ``validation`` (loss, ``nats_per_sample``), averaged over seeds beside its
        standard deviation ``KEY_std``.

    Raises:
        ConfigError, DataError, CheckpointError, TrainingError: as training and evaluation do.
        Interrupted: after SIGINT or SIGTERM, once a checkpoint is saved. The same call goes on.
    """
    if samples < 2:
        raise ConfigError(f"--samples {samples} is wrong: should be at least 2")
    parse_options(comparison.base.configure().modality, options)
    measured = {"samples": samples, "options": list(options)}
    results: dict[str, Any] = {"compared": comparison.record, "measured": measured}
    with training(comparison, seeds, results, partial(_measured, comparison, measured)):
        return results


def _measured(comparison: Comparison, measured: Mapping[str, Any], kind: Kind, run: Path) -> dict[str, Any]:
    tokenizer, device = comparison.tokenizer_of(kind), comparison.base.configure().training.device
    log = comparison.log
    first = _once(tokenizer / RATE, measured, lambda: _distortion(comparison, tokenizer, measured, device), log)
    second = _once(run / RATE, {}, lambda: _cost(run, device), log)
    trained = {
        "tokenizer_steps": load_run_config(tokenizer).training.tokenizer.steps,
        "tokenizer_minutes": comparison.minutes_of(tokenizer),
        "steps": load_run_config(run).training.transformer.steps,
        "minutes": comparison.minutes_of(run),
    }
    return {"training": trained, **first, **second}


def _once(
    path: Path, measured: Mapping[str, Any], measure: Callable[[], dict[str, Any]], log: Callable[[str], None]
) -> dict[str, Any]:
    found = stored(path)
    if found.pop("measured", None) == measured:
        return found
    log(f"{path.parent.name}: measuring")
    found = without_nan(measure())
    write_json_atomic(path, {"measured": measured, **found})
    return found


def _distortion(comparison: Comparison, run: Path, measured: Mapping[str, Any], device: str) -> dict[str, Any]:
    where, config = pick_device(device), load_run_config(run)
    modality, tokenizer = plugins.modality(config.modality), load_tokenizer(run, where)
    data, options = modality.open_data(config.data), parse_options(config.modality, measured["options"])
    context = EvaluationContext(where, comparison.folder / "eval-cache")
    decoded, conditions = [], []
    for indices in validation_batches(len(data.held_out), measured["samples"]):
        batch = data.held_out.batch(indices, None)
        conditions.append(batch.conditions)
        with torch.no_grad():
            decoded.append(tokenizer.decode_tokens(tokenizer.encode(batch.to(where).samples)).to("cpu"))
    joined = {name: torch.cat([part[name] for part in conditions]) for name in conditions[0]}
    return {
        "reconstruction": modality.evaluate_tokenizer(tokenizer, data, options, context),
        "codebook": codebook_usage(tokenizer, data),
        "decoded": modality.evaluate_samples(modality.concatenate(decoded), joined, data, options, context),
    }


def _cost(run: Path, device: str) -> dict[str, Any]:
    model = load(run, device)
    data = model.modality.open_data(model.config.data)
    weights = sum(parameter.numel() for parameter in model.transformer.parameters())
    tokens = model.tokenizer.schedule().length
    return {"tokens": tokens, "weights": weights, "validation": validation_loss(model, data)}


def rate_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per kind: its tokens, what they cost, and every measure of distortion; then what real samples score."""
    rows: list[dict[str, Any]] = []
    floors: dict[str, Any] = {"kind": "real samples"}
    for name, row in results["kinds"].items():
        decoded = _compared(row)
        rows.append(
            {
                "kind": name,
                "seeds": len(row["seeds"]),
                "tokenizer": row["tokenizer"],
                "tokenizer_steps": row["training"]["tokenizer_steps"],
                "steps": spread(row["training"], "steps"),
                "tokens": int(row["tokens"]),
                "nats_per_sample": nats(row)[0],
                "nats_std": nats(row)[1],
                "perplexity": row["codebook"].get("perplexity_total"),
                **{key: row["reconstruction"][key] for key in measures(row["reconstruction"])},
                **decoded,
            }
        )
        floors |= {key: row["decoded"][f"{key}_floor"] for key in decoded}
    return [*rows, floors] if len(floors) > 1 else rows


def nats(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """What all tokens of a sample cost, or an upper bound of it, and the standard deviation over seeds."""
    name = NATS if NATS in row["validation"] else NATS_BOUND
    return row["validation"].get(name), row["validation"].get(f"{name}_std")


def _compared(row: Mapping[str, Any]) -> dict[str, float]:
    """The measures of decoded samples that real samples have as well."""
    values = row["decoded"]
    return {key: values[key] for key in measures(values) if values.get(f"{key}_floor") is not None}
