"""Check a run before it starts, so that mistakes surface before anything is written and before anyone has waited."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nextscale import distributed
from nextscale.config.sections import RunConfig
from nextscale.data import DataSplits
from nextscale.errors import CheckpointError, ConfigError
from nextscale.meta import without_memory
from nextscale.modality import Modality
from nextscale.remote.urls import is_url
from nextscale.sampling.check import check_sampling
from nextscale.storage.models import has, new_transformer, stored_config, stored_settings
from nextscale.storage.scorer import new_scorer
from nextscale.storage.starting import start_from
from nextscale.tokens.capabilities import Requantizes
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.training.cache import are_written, place_of_tokens
from nextscale.training.sharding import group_size
from nextscale.training.step import micro_batch_size
from nextscale.transformer import ScaleTransformer


def check_run(
    config: RunConfig, modality: Modality, data: DataSplits, stages: Sequence[str], init: Path | None = None
) -> None:
    """Check that the settings fit together and fit the data. Models are built without memory (torch's meta device).

    ``init`` is the run that the transformer starts from.

    Raises:
        ConfigError, DataError, CheckpointError: they do not fit.
    """
    if "tokenizer" in stages:
        micro_batch_size(config.training.tokenizer, "tokenizer")
    if "scorer" in stages:
        micro_batch_size(config.training.scorer, "scorer")
        with without_memory():
            tokenizer = modality.build_tokenizer(config.tokenizer, data.description)
            drawer = new_transformer(config.transformer, tokenizer, data.conditions)
            scorer = new_scorer(config.scorer, tokenizer, drawer)
        several = config.sampling.model_copy(update={"candidates": max(2, config.sampling.candidates)})
        check_sampling(several, tokenizer, drawer, len(tokenizer.schedule()), scorer)
    if "transformer" not in stages:
        return
    micro_batch_size(config.training.transformer, "transformer")
    distributed.on_main(lambda: _check_cache(config))
    group_size(config.training.shard, distributed.world_size())
    with without_memory():
        tokenizer = modality.build_tokenizer(config.tokenizer, data.description)
        transformer = new_transformer(config.transformer, tokenizer, data.conditions)
    if init is not None and has(init, "transformer"):
        start_from(init, "transformer", transformer)
    scales = len(tokenizer.schedule())
    check_sampling(config.sampling, tokenizer, transformer, scales)
    weights, attention = config.training.transformer.scale_weights, config.transformer.attention
    if tokenizer.adaptive:
        _check_adaptive(config)
        return
    if isinstance(weights, tuple) and (len(weights) != scales or not any(weights)):
        raise ConfigError(
            f"training.transformer.scale_weights = {list(weights)} is wrong: should be {scales} numbers, "
            "one per scale, not all of them zero; or equal, or root"
        )
    if config.training.transformer.corrupt and not isinstance(tokenizer, Requantizes):
        raise ConfigError(
            f"training.transformer.corrupt: {type(tokenizer).__name__} {Requantizes.missing}: "
            "set training.transformer.corrupt=0"
        )
    if config.transformer.in_scale_steps and max(tokenizer.schedule().lengths) == 1:
        raise ConfigError(
            "transformer.in_scale_steps reveals a scale in parts, but here every scale is a single token: "
            "set transformer.in_scale_steps=false"
        )
    _check_turns(config, tokenizer)
    if not isinstance(attention, str) and len(attention) != scales:
        raise ConfigError(f"transformer.attention has {len(attention)} rows and columns; there are {scales} scales")


def _check_cache(config: RunConfig) -> None:
    """Ask a token cache behind a URL now, because a mistake would else show after stage 1."""
    settings = config.training.transformer
    where = settings.cache_folder
    if not settings.cache or settings.corrupt or not is_url(where):
        return
    if any(sign in str(where) for sign in "*?["):
        raise ConfigError(
            f"training.transformer.cache_folder={where} holds one of * ? [, which storages read as patterns"
        )
    are_written(place_of_tokens(Path(), config, "train"))


def _check_turns(config: RunConfig, tokenizer: MultiscaleTokenizer) -> None:
    """Reject settings with which the groups of a tokenizer that fixes their order would go unused."""
    for wrong, what, setting in (
        (not config.transformer.in_scale_steps, "only in-scale steps can learn", "transformer.in_scale_steps=true"),
        (config.sampling.reveal != "groups", "only reveal=groups draws", "sampling.reveal=groups"),
    ):
        if tokenizer.group_order == "fixed" and wrong:
            raise ConfigError(
                f"the tokenizer draws a scale in groups (tokenizer.group_side or similar), which {what}: set {setting}"
            )


def _check_adaptive(config: RunConfig) -> None:
    """Reject settings that mean nothing when every batch has its own schedule."""
    model, training = config.transformer, config.training.transformer
    for wrong, setting in (
        (training.cache, "training.transformer.cache=false"),
        (training.scale_weights is not None, "training.transformer.scale_weights=null"),
        (model.scale_embedding, "transformer.scale_embedding=false"),
        (model.positions == "absolute", "transformer.positions=rotary"),
        (not isinstance(model.attention, str), "transformer.attention=markov"),
        (training.corrupt > 0, "training.transformer.corrupt=0"),
        (model.refiner is not None and isinstance(model.refiner.scales, int), "transformer.refiner.scales=null"),
        (config.training.shard != "none", "training.shard=none"),
    ):
        if wrong:
            raise ConfigError(f"the scales of {config.modality} samples differ from sample to sample: set {setting}")


def check_tokenizer(run: Path, data: DataSplits, config: RunConfig, weights_only: bool = False) -> None:
    """Check that the tokenizer in a run folder was trained with these settings and on such data.

    Of the data, only what the tokenizer's stored description mentions is compared; with ``weights_only``, only those
    settings that its weights depend on.

    Raises:
        CheckpointError: it was not; the message lists the differences.
    """
    stored = stored_config(run, "tokenizer")
    path = Path(run) / "tokenizer" / "config.json"
    free = set(type(config.tokenizer).unlearned) if weights_only else None
    settings = stored_settings(type(config.tokenizer), stored["tokenizer"], path).model_dump(mode="json", exclude=free)
    told = {key: value for key, value in data.description.items() if key in stored["description"]}
    for what, there, now in (
        ("on different data", stored["description"], json.loads(json.dumps(told))),
        ("with different settings", settings, config.tokenizer.model_dump(mode="json", exclude=free)),
    ):
        different = _differences(there, now)
        if different:
            raise CheckpointError(f"the tokenizer in {run} was trained {what}: {'; '.join(different)}")


def check_transformer(run: Path, transformer: ScaleTransformer, data: DataSplits, config: RunConfig) -> None:
    """Check that the transformer in a run folder has these settings, and the conditions of such data.

    Raises:
        CheckpointError: it has not; the message lists the differences.
    """
    there, now = (each.model_dump(mode="json") for each in (transformer.config, config.transformer))
    different = _differences(there, now, "transformer")
    if transformer.conditioner.specs != tuple(data.conditions):
        different.append("the data have other conditions")
    if different:
        raise CheckpointError(f"the transformer in {run} was trained with different settings: {'; '.join(different)}")


def draws_alike(run: Path, config: RunConfig) -> bool:
    """Whether the tokenizer in ``run`` has the same values as ``config`` of the settings that reorder tokens
    (``Section.reordering``). If not, its transformer has learned another order of tokens."""
    stored, path = stored_config(run, "tokenizer")["tokenizer"], Path(run) / "tokenizer" / "config.json"
    there, now = stored_settings(type(config.tokenizer), stored, path), config.tokenizer
    return all(getattr(there, name) == getattr(now, name) for name in type(now).reordering)


def _differences(there: Any, now: Any, path: str = "") -> list[str]:
    """``["quantizer.codes was 32, is now 64"]``"""
    if not (isinstance(there, dict) and isinstance(now, dict)):
        return [] if there == now else [f"{path} was {there}, is now {now}"]
    keys = [*there, *(key for key in now if key not in there)]
    return [
        text
        for key in keys
        for text in _differences(there.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    ]
