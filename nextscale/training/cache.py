"""Fill the token cache: each pass tokenizes every sample once, with its own augmentation.

All processes write, each its own shards. A shard's samples are encoded in the same batches whichever process writes it,
so the cache does not depend on the number of processes, nor on whether one was killed in between.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from nextscale import distributed
from nextscale.config.sections import RunConfig
from nextscale.data import DataSplits, SampleSource
from nextscale.errors import CheckpointError, ConfigError
from nextscale.randomness import mixed_seed, sample_seeds
from nextscale.remote.urls import is_url
from nextscale.storage.places import LocalPlace, place_of, within
from nextscale.storage.tokens import TokenStore, hash_module
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.training.log import RunLog
from nextscale.training.signals import InterruptFlag

BATCH = 256
FOLDER = "tokens.zarr"


def open_or_write_tokens(
    run: Path,
    tokenizer: MultiscaleTokenizer,
    data: DataSplits,
    config: RunConfig,
    log: RunLog,
    rewrite: bool = False,
) -> tuple[TokenStore, TokenStore]:
    """The token stores of the training and the validation split; missing stores are written first.

    Raises:
        ConfigError: the tokenizer is adaptive.
        CheckpointError: a store is from another tokenizer or of other data, was made with other settings, or is
            damaged.
    """
    if tokenizer.adaptive:
        raise ConfigError(
            f"tokens of {type(tokenizer).__name__} cannot be cached, because every batch has its own schedule: "
            "set training.transformer.cache=false"
        )
    told = {"schedule": str(tokenizer.schedule())} | ({} if tokenizer.order == "scales" else {"order": tokenizer.order})
    written_by = hash_module(tokenizer, told)
    passes, seed = config.training.transformer.cache_passes, config.seed
    made_with = _settings(config)
    stores = []
    # Held-out samples are tokenized once, without augmentation.
    for name, source, count in (("train", data.train, passes), ("validation", data.validation, 1)):
        path = place_of_tokens(run, config, name)
        if rewrite or distributed.agree(distributed.is_main() and not are_written(path)):
            augmented = None if name == "validation" else mixed_seed(seed, 3)
            made_in = run / FOLDER / name
            write_tokens(path, made_in, tokenizer, source, data, count, augmented, written_by, log, made_with)
        store = TokenStore.open(path, written_by)
        _check_store(store, source, made_with)
        if "fingerprint" not in store.attributes and _fingerprint(source) is not None and name == "train":
            log.note(f"{path} was written before the data were recorded with it, so only their number is compared")
        stores.append(store)
    return stores[0], stores[1]


def place_of_tokens(run: Path, config: RunConfig, split: str) -> Path | str:
    """The folder or URL of the tokens of a split, ``train`` or ``validation``."""
    return within(config.training.transformer.cache_folder or run / FOLDER, split)


def are_written(path: Path | str) -> bool:
    """Whether something is there that need not be written first; it may still be refused."""
    place = place_of(path)
    return place.exists() if isinstance(place, LocalPlace) else place.size("manifest.json") is not None


def _check_store(store: TokenStore, source: SampleSource, made_with: dict[str, Any]) -> None:
    remedy = "run `nextscale tokenize` or delete it"
    if store.num_samples != len(source):
        raise CheckpointError(
            f"{store.path} holds tokens of {store.num_samples} samples, but the data now has {len(source)}: {remedy}"
        )
    recorded = store.attributes.get("made_with", {})
    if not isinstance(recorded, dict):
        raise CheckpointError(f"{store.path} is damaged (made_with is no mapping): {remedy}")
    for key, value in recorded.items():
        if key in made_with and made_with[key] != value:
            raise CheckpointError(
                f"{store.path} was made with {key}={json.dumps(value)}, but this run has {json.dumps(made_with[key])}: "
                f"{remedy}"
            )
    written_of, now = store.attributes.get("fingerprint"), _fingerprint(source)
    if written_of is not None and now is not None and written_of != now:
        raise CheckpointError(
            f"{store.path} holds tokens of other data: as many samples, but not the same ones. If the data were "
            f"changed on purpose, {remedy}"
        )


def _fingerprint(source: SampleSource) -> str | None:
    """What a source says about which samples it holds; None if it says nothing."""
    told = getattr(source, "fingerprint", None)
    return None if told is None else str(told())


def _settings(config: RunConfig) -> dict[str, Any]:
    """The settings that, beside the tokenizer, decide the cached tokens; not the data's path, because data may move."""
    where = getattr(config.data, "shorthand", None)
    data = config.data.model_dump(mode="json", exclude={where} if where else None)
    passes = {"training.transformer.cache_passes": config.training.transformer.cache_passes}
    return {f"data.{key}": value for key, value in data.items()} | passes | {"seed": config.seed}


@torch.no_grad()
def write_tokens(
    path: Path | str,
    made_in: Path,
    tokenizer: MultiscaleTokenizer,
    source: SampleSource,
    data: DataSplits,
    passes: int,
    seed: int | None,
    written_by: str,
    log: RunLog,
    made_with: dict[str, Any],
) -> None:
    """Tokenize ``source`` ``passes`` times into a store; ``seed`` None means without augmentation. Behind a URL,
    shards are made in the folder ``made_in``."""
    size = len(source)
    specs = {
        spec.name: ((spec.size,), np.float32) if spec.kind == "vector" else ((), np.int64) for spec in data.conditions
    }
    attributes: dict[str, Any] = {"made_with": made_with}
    told = _fingerprint(source)
    if told is not None:
        attributes["fingerprint"] = told
    remote = is_url(path)
    store = TokenStore.create(
        made_in if remote else path,
        url=str(path) if remote else None,
        schedule=tokenizer.schedule(),
        vocabulary=tokenizer.token_space.vocabulary,
        token_shape=tokenizer.token_space.token_shape,
        num_rows=passes * size,
        tokenizer_hash=written_by,
        conditions=specs,
        passes=passes,
        num_samples=size,
        attributes=attributes,
        resume=told is not None,  # otherwise nothing says that the rows would be the same
    )
    hidden = not (log.main and log.console.is_terminal)
    # One process may stop anywhere; several stop between batches, so that none waits for another for ever.
    flag = InterruptFlag() if distributed.world_size() > 1 else None
    progress = Progress(console=log.console, transient=True, disable=hidden)
    with store as writer, flag or nullcontext(), progress as bar:

        def write(shard: int) -> None:
            writer.begin(shard)
            rows = np.array(writer.rows_of(shard))
            for first in range(0, len(rows), BATCH):
                if flag is not None:
                    flag.leave_if_raised()
                chosen = rows[first : first + BATCH]
                seeds = None if seed is None else sample_seeds(seed, chosen)
                batch = source.batch(chosen % size, seeds).to(tokenizer.device)
                writer.append(tokenizer.encode(batch.samples), batch.conditions)

        unfinished, world = writer.unfinished, distributed.world_size()
        done = writer.num_shards - len(unfinished)
        if done:
            log.note(f"{path}: {done:,} of {writer.num_shards:,} shards are already written")
        task = bar.add_task(f"tokenizing {made_in.name}", total=writer.num_shards, completed=done)
        for first in range(0, len(unfinished), world):
            mine = unfinished[first:][distributed.rank() : distributed.rank() + 1]
            distributed.together(lambda mine=mine: [write(shard) for shard in mine])
            bar.advance(task, min(world, len(unfinished) - first))
    log.note(f"wrote the tokens of {passes} x {size:,} samples to {path}")
