"""How fast this installation trains: stage 2's step on cached tokens, with tokenizing on the fly, and its floor."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextscale import plugins
from nextscale.bench.floor import Clock, Convolution, Floor, MatrixProducts, Product, synchronized, typical
from nextscale.conditioning import ConditionSpec
from nextscale.config.run import load_config
from nextscale.config.sections import RunConfig
from nextscale.data import Batch, DataSplits
from nextscale.device import autocast_dtype, pick_device
from nextscale.errors import ConfigError, unknown
from nextscale.memory import keep_freed_memory
from nextscale.modality import BenchCase, Modality
from nextscale.storage.models import new_transformer
from nextscale.storage.tokens import TokenStore
from nextscale.tokens.pyramid import TokenPyramid
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.training.step import Stepper
from nextscale.training.transformer_stage import TransformerStage
from nextscale.transformer import ScaleTransformer

TARGETS = {"fp32": 1.3, "bf16": 1.5, "fp16": 1.5}
"""The ratio of step time to floor that this project aims for."""
STORE_ROWS = 1024


def bench_train(
    modality: str,
    cases: Sequence[BenchCase | str],
    precisions: Sequence[str] = ("fp32", "bf16"),
    repeats: int = 5,
    overrides: Sequence[str] = (),
    *,
    device: str = "auto",
    seconds: float = 90.0,
    log: Callable[[str], None] | None = None,
    clock: Clock = time.perf_counter,
) -> list[dict[str, Any]]:
    """Time one training step of stage 2 (forward, loss, backward, clipping, AdamW) with untrained weights.

    It is timed in three ways: on cached tokens; on samples, which the step tokenizes itself; and as its floor, the
    matrix products alone. The three are timed in turns, so that other load on the machine affects all of them. The
    median of each counts.

    Args:
        cases: the cases to time; a string names a preset.
        precisions: ``fp32``, ``bf16``, ``fp16``.
        repeats: number of turns, after one that is dropped.
        overrides: ``key=value`` settings that override every preset.
        seconds: no further turn begins once a row has taken this long (if there is only one turn, it is not dropped).
        log: called with a line before each row.

    Returns:
        One row per preset and precision: times in ms; ``on_the_fly_ratio``, tokenizing on the fly over cached tokens;
        ``floor_ratio``, cached tokens over floor; ``floor_gflops``, the floor's speed.

    Raises:
        ConfigError: an unknown preset, precision or setting.
        DataError: a preset's data is missing.
    """
    for precision in precisions:
        if precision not in TARGETS:
            raise ConfigError(unknown("precision", precision, TARGETS))
    if repeats < 1:
        raise ConfigError(f"repeats = {repeats} is wrong: should be at least 1")
    where = pick_device(device)
    rows = []
    for case in cases:
        case = BenchCase(case) if isinstance(case, str) else case
        for precision in precisions:
            if log is not None:
                log(f"{case.preset} {precision}")
            settings = [*overrides, f"training.transformer.precision={precision}", "training.transformer.accumulate=1"]
            config = load_config(modality, case.preset, None, settings)
            with tempfile.TemporaryDirectory(prefix="nextscale-bench-") as folder:
                rows.append(_row(case, config, where, Path(folder), repeats, seconds, clock))
    return rows


def _row(
    case: BenchCase, config: RunConfig, device: torch.device, folder: Path, repeats: int, seconds: float, clock: Clock
) -> dict[str, Any]:
    settings = config.training.transformer
    if case.batch_size is not None:
        settings = settings.model_copy(update={"batch_size": case.batch_size})
    torch.manual_seed(config.seed)
    modality = plugins.modality(config.modality)
    tokenizer, data = _tokenizer_and_data(case, config, modality, settings.batch_size, device)
    transformer = new_transformer(config.transformer, tokenizer, data.conditions)
    batch = data.train.batch(np.arange(settings.batch_size), None).to(device)
    with torch.no_grad():
        pyramid = tokenizer.encode(batch.samples)
    counts = count_products(transformer.to(device), tokenizer, pyramid, batch, settings.precision)
    store = _write(folder / "tokens", tokenizer, pyramid.to("cpu"), batch, data.conditions)

    def stage(stores: tuple[TokenStore, TokenStore] | None) -> TransformerStage:
        return TransformerStage(modality, tokenizer, transformer, data, stores, settings, config.sampling, config.seed)

    cached, on_the_fly = stage((store, store)), stage(None)
    stepper = Stepper(cached, config.seed, device)

    now = partial(synchronized, clock, device)

    def step(source: TransformerStage) -> float:
        start = now()
        positions = stepper.step * settings.batch_size + np.arange(settings.batch_size)
        stepper.train_step([source.batch(positions)])  # includes reading, which the loop does in parallel
        return now() - start

    if settings.compile:  # first, because compiling takes longer than all that is timed
        step(cached)
        step(on_the_fly)
    floor = Floor(counts, now)
    # Time the floor before and after the step that it is compared with.
    turn = [("floor", floor), ("cached", partial(step, cached)), ("floor", floor), ("fly", partial(step, on_the_fly))]
    with keep_freed_memory() if device.type == "cpu" else nullcontext():
        took = typical(turn, repeats, seconds)
    return {
        "preset": case.preset,
        "precision": settings.precision,
        "threads": torch.get_num_threads(),
        "batch": settings.batch_size,
        "tokens": transformer.schedule.length,
        "cached_ms": took["cached"] * 1e3,
        "on_the_fly_ms": took["fly"] * 1e3,
        "on_the_fly_ratio": took["fly"] / took["cached"],
        "floor_ms": took["floor"] * 1e3,
        "floor_gflops": floor.flops / took["floor"] / 1e9,
        "floor_ratio": took["cached"] / took["floor"],
        "target": TARGETS[settings.precision],
        "note": _note(settings.precision, device),
    }


def _tokenizer_and_data(
    case: BenchCase, config: RunConfig, modality: Modality, batch_size: int, device: torch.device
) -> tuple[MultiscaleTokenizer, DataSplits]:
    if case.description is None:
        data = modality.open_data(config.data)
        tokenizer = modality.build_tokenizer(config.tokenizer, data.description).to(device).eval()
        return tokenizer, data
    tokenizer = modality.build_tokenizer(config.tokenizer, case.description).to(device).eval()
    space, schedule = tokenizer.token_space, tokenizer.schedule()
    tokens = torch.randint(space.vocabulary, (batch_size, schedule.length, *space.token_shape), device=device)
    with torch.no_grad():
        samples = tokenizer.decode_tokens(TokenPyramid(tokens, schedule))
    conditions = {
        spec.name: torch.randint(spec.size, (batch_size,))
        if spec.kind == "class"
        else torch.randn(batch_size, spec.size)
        for spec in case.conditions
    }
    source = _OneBatch(Batch(samples, conditions).to("cpu"))
    return tokenizer, DataSplits(source, source, None, case.conditions, case.description)


class _OneBatch:
    """A ``SampleSource`` that returns the same batch for any indices."""

    def __init__(self, batch: Batch) -> None:
        self.one = batch

    def __len__(self) -> int:
        return STORE_ROWS

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
        return self.one


def _write(
    path: Path,
    tokenizer: MultiscaleTokenizer,
    pyramid: TokenPyramid,
    batch: Batch,
    conditions: Sequence[ConditionSpec],
) -> TokenStore:
    """A token cache the size of a shard that repeats one batch."""
    copies = -(-STORE_ROWS // len(pyramid))
    space = tokenizer.token_space
    store = TokenStore.create(
        path,
        schedule=pyramid.schedule,
        vocabulary=space.vocabulary,
        token_shape=space.token_shape,
        num_rows=copies * len(pyramid),
        tokenizer_hash="bench",
        conditions={
            spec.name: ((), np.int64) if spec.kind == "class" else ((spec.size,), np.float32) for spec in conditions
        },
        ragged=pyramid.mask is not None,
    )
    with store as writer:
        for _ in range(copies):
            writer.append(pyramid, batch.conditions)
    return TokenStore.open(path)


def count_products(
    transformer: ScaleTransformer, tokenizer: MultiscaleTokenizer, pyramid: TokenPyramid, batch: Batch, precision: str
) -> Counter[Product | Convolution]:
    """The matrix products of the transformer's forward and backward on one batch.

    Those that make its inputs (the quantizer's codes, resampling, phi) are not counted.
    """
    device = tokenizer.device
    with torch.no_grad():
        inputs = tokenizer.teacher_forcing(pyramid, batch.conditions)
    dtype = autocast_dtype(precision, device)
    with MatrixProducts() as products:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            cond_BD = transformer.conditioner(batch.conditions, len(pyramid))
            logits = transformer(inputs, cond_BD, tokens=pyramid.tokens)
            loss = transformer.token_space.loss(logits, pyramid.tokens).mean()
        loss.backward()
    transformer.zero_grad(set_to_none=True)
    return products.counts


def _note(precision: str, device: torch.device) -> str:
    if precision == "bf16" and autocast_dtype("auto", device) is None:
        return f"no fast bf16 on this {'CPU' if device.type == 'cpu' else 'GPU'}"
    return ""
