"""What a trained run costs: time, passes and operations of a sample, operations of its training, peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextscale.api import Model, load
from nextscale.bench.floor import Floor, MatrixProducts, synchronized, typical
from nextscale.bench.memory import MIB, memory_in_use, peak_memory, reset_peak
from nextscale.bench.training import count_products
from nextscale.device import cpu_threads, pick_device
from nextscale.memory import release_freed_memory

REPEATS = 3
SECONDS = 60.0
"""No further repetition begins once the times of one guidance value have taken this long."""


def run_costs(run: Path, guidance: Sequence[float], batch_size: int, device: str = "auto") -> dict[str, Any]:
    """Measure a trained run. Call it in a process of its own: peak memory is that of the process.

    Args:
        guidance: the values to draw samples at; guidance above 0 takes twice the rows.
        batch_size: the larger of the two batches that are timed; the other is 1.

    Returns:
        ``weights`` of the transformer; ``train_step_flops``, of the transformer's forward and backward passes on one
        batch of training; and ``sampling``, by guidance: ``passes`` of the transformer per sample, ``ms_batch_1`` and
        ``ms_batch_N`` (milliseconds per sample, decoding included, medians), ``sample_flops`` (all matrix products and
        convolutions of a sample), and ``peak_mib``, how far drawing the larger batch raised the memory in use above
        its level before the model was loaded (None if the system does not report it).

        Operations are counted as computed on this device (``MatrixProducts``). On CPUs, training computes only those
        blocks of attention that the mask leaves.

    Raises:
        CheckpointError, DataError: the run or its data cannot be read.
    """
    before = memory_in_use(pick_device(device)) or 0
    model = load(run, device)
    with cpu_threads(model.config.training.threads):
        sampling = {f"{value:g}": _sampling(model, value, batch_size, before) for value in guidance}
        return {
            "weights": sum(parameter.numel() for parameter in model.transformer.parameters()),
            "train_step_flops": _train_step_flops(model),
            "sampling": sampling,
        }


def _sampling(model: Model, guidance: float, batch_size: int, before: int) -> dict[str, Any]:
    device, settings = model.tokenizer.device, {"guidance": guidance}

    def draw(number: int) -> None:
        model.generate(number, sampling=settings, batch_size=number)

    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    hook = model.transformer.register_forward_hook(count)
    try:
        with MatrixProducts(convolutions=True) as products:
            draw(1)
    finally:
        hook.remove()
    now = partial(synchronized, time.perf_counter, device)

    def timed(number: int) -> Callable[[], float]:
        def measure() -> float:
            start = now()
            draw(number)
            return (now() - start) / number

        return measure

    release_freed_memory()
    reset_peak(device)
    took = typical([("one", timed(1)), ("many", timed(batch_size))], REPEATS, SECONDS)
    peak = peak_memory(device)
    return {
        "passes": passes,
        "ms_batch_1": took["one"] * 1e3,
        f"ms_batch_{batch_size}": took["many"] * 1e3,
        "sample_flops": Floor(products.counts, time.perf_counter).flops,
        "peak_mib": None if peak is None else (peak - before) / MIB,
    }


def _train_step_flops(model: Model) -> int:
    settings = model.config.training.transformer
    batch = model.modality.open_data(model.config.data).train.batch(np.arange(settings.batch_size), None)
    batch = batch.to(model.tokenizer.device)
    with torch.no_grad():
        pyramid = model.tokenizer.encode(batch.samples)
    counts = count_products(model.transformer, model.tokenizer, pyramid, batch, settings.precision)
    return Floor(counts, time.perf_counter).flops
