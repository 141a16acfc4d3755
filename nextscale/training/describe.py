"""What a run would train, and roughly how long it would take, without training it (``--dry-run``)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nextscale import plugins
from nextscale.config.sections import RunConfig, Shard, StageConfig
from nextscale.data import DataSplits
from nextscale.device import autocast_dtype, pick_device
from nextscale.meta import without_memory
from nextscale.storage.models import new_transformer
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.training.sharding import group_size, has_blocks
from nextscale.transformer import ScaleTransformer

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
SMALL = 5_000_000
"""A tokenizer with fewer parameters is quick to build and run."""


def describe(config: RunConfig) -> dict[str, Any]:
    """Samples, parameters, tokens and estimated hours of each stage.

    Models are built without memory (torch's meta device); the data is opened because sizes come from it. The
    estimate is the number of multiply-adds divided by the measured speed of a matrix product. Real training takes at
    least half as long again.
    """
    modality = plugins.modality(config.modality)
    data = modality.open_data(config.data)

    def build() -> MultiscaleTokenizer:
        return modality.build_tokenizer(config.tokenizer, data.description)

    with without_memory():
        tokenizer = build()
        transformer = new_transformer(config.transformer, tokenizer, data.conditions)
    schedule = tokenizer.schedule()
    speed = _matmul_flops(config)
    stages = config.training
    report: dict[str, Any] = {
        "samples": {
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test) if data.test is not None else 0,
        },
        "schedule": schedule.shapes,
        "tokens per sample": schedule.length,
        "conditions": ", ".join(f"{spec.name} ({spec.kind}, {spec.size})" for spec in data.conditions) or "none",
    }
    for name, model, stage, flops in (
        ("tokenizer", tokenizer, stages.tokenizer, _tokenizer_flops(tokenizer, build, data)),
        ("transformer", transformer, stages.transformer, transformer_flops(transformer, build, data)),
    ):
        # A tokenizer without weights has no stage.
        trained = any(parameter.requires_grad for parameter in model.parameters())
        row = _stage(model, stage, flops, schedule.length, len(data.train), speed)
        row |= _memory(model, stage, config.training.shard)
        report[name] = row if trained else "no weights to train"
    return report


def _stage(
    model: nn.Module, stage: StageConfig, flops: float | None, tokens: int, samples: int, speed: float
) -> dict[str, Any]:
    seen = stage.steps * stage.batch_size
    row: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": stage.steps,
        "epochs": round(seen / samples, 2),
        "tokens": seen * tokens,
    }
    if flops is not None:
        row["operations per sample, forward and backward"] = f"{3 * flops:.3g}"
        row["estimated minutes, at least"] = round(3 * flops * seen / speed / 60, 1)
    return row


def _memory(model: nn.Module, stage: StageConfig, shard: Shard) -> dict[str, str]:
    """What each device holds besides activations: in float32, the weights, their gradients, AdamW's two averages, and
    the moving average of the weights where one is kept. torchrun says how many processes there are."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    size = group_size(shard, processes) if has_blocks(model) else 1
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    gigabytes = 4 * trained * (5 if stage.ema else 4) / size / 1e9
    spread = f", sharded over {size}" if size > 1 else ""
    what = "memory per device, without activations"
    return {what: f"{gigabytes:.2f} GB on {processes} process{'es' if processes > 1 else ''}{spread}"}


def _matmul_flops(config: RunConfig) -> float:
    """Measured operations per second of a matrix product on the training device, in the training precision."""
    device = pick_device(config.training.device)
    dtype = autocast_dtype(config.training.transformer.precision, device) or torch.float32
    a = torch.randn(512, 512, device=device, dtype=dtype)
    torch.mm(a, a)  # warm up
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * 512**3 / best


def _tokenizer_flops(
    tokenizer: MultiscaleTokenizer, build: Callable[[], MultiscaleTokenizer], data: DataSplits
) -> float | None:
    """Operations of one sample's pass through encoder and decoder; None if there is nothing to train.

    A small tokenizer is really built and run: on the meta device torch would import its compiler, which takes longer.
    """
    if not any(parameter.requires_grad for parameter in tokenizer.parameters()):
        return None
    small = sum(parameter.numel() for parameter in tokenizer.parameters()) < SMALL
    tokenizer = (build() if small else tokenizer).eval()
    found: list[float] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # By hand, because torch.utils.flop_counter imports the compiler too.
        if isinstance(module, LAYERS):
            found.append(2.0 * output.numel() * module.weight[0].numel())

    for module in tokenizer.modules():
        module.register_forward_hook(count)
    samples = data.train.batch(np.arange(1), None).samples.to("cpu" if small else "meta")
    with torch.no_grad():
        tokenizer.decode_tokens(tokenizer.encode(samples))
    return sum(found)


def transformer_flops(
    transformer: ScaleTransformer, build: Callable[[], MultiscaleTokenizer], data: DataSplits
) -> float:
    """Operations of one sample: its linear layers, and the two products of attention over the pairs of tokens that may
    look at each other."""
    config, schedule = transformer.config, transformer.schedule
    linear = {
        name: module.weight.numel()
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and "adaln" not in name
    }
    # A stem of the modality's own works on more than tokens: one sample tells on how much.
    rows = _rows(transformer, build(), data) if transformer.stem.complete else {}
    rows |= {name: schedule.length for name in linear if not rows or name.startswith("blocks.")}
    refiner, in_refiner = transformer.refiner, 0.0
    if refiner is not None:
        refined = [n for k, n in enumerate(schedule.lengths) if refiner.covers(k, n)]
        rows |= {name: sum(refined) for name in linear if name.startswith("refiner.")}
        in_refiner = 4.0 * len(refiner.blocks) * refiner.width * sum(n * (n + 1) / 2 for n in refined)
    products = sum(size * rows.get(name, 0.0) for name, size in linear.items())
    scales, lengths = torch.arange(len(schedule)), torch.tensor(schedule.lengths, dtype=torch.double)
    allowed = transformer.attention.allowed(scales, scales)
    pairs = lengths @ allowed.double() @ lengths
    return 2.0 * products + 4.0 * config.depth * config.model_width * float(pairs) + in_refiner


@torch.no_grad()
def _rows(transformer: ScaleTransformer, tokenizer: MultiscaleTokenizer, data: DataSplits) -> dict[str, float]:
    """How many rows each linear layer outside the blocks multiplies for a sample of about mean length. They are counted
    on a model of the smallest width, which is quick."""
    narrow = {"width": 2, "heads": 1}
    refiner = transformer.config.refiner and transformer.config.refiner.model_copy(update=narrow)
    smallest = transformer.config.model_copy(update={"depth": 0, "refiner": refiner, **narrow})
    model, rows = new_transformer(smallest, tokenizer.eval(), data.conditions), {}

    names = {module: name for name, module in model.named_modules()}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows[names[module]] = rows.get(names[module], 0.0) + output.numel() / output.shape[-1]

    for module in names:
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count)
    lengths = np.asarray(getattr(data.train, "lengths", np.zeros(1)))
    batch = data.train.batch(np.abs(lengths - lengths.mean()).argmin()[None], None)
    pyramid = tokenizer.encode(batch.samples)
    inputs = tokenizer.teacher_forcing(pyramid, batch.conditions)
    model(inputs, model.conditioner(batch.conditions, 1), by_scale=True, tokens=pyramid.tokens)
    return rows
