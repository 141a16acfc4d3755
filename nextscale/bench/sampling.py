"""How fast this installation draws samples, relative to the floor of its products, and how much memory that takes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from nextscale import plugins
from nextscale.bench.floor import Clock, Floor, MatrixProducts, synchronized, typical
from nextscale.bench.memory import MIB, memory_in_use, peak_memory, reset_peak
from nextscale.conditioning import ConditionSpec
from nextscale.config.run import load_config
from nextscale.config.sections import SamplingConfig
from nextscale.device import autocast_dtype, pick_device
from nextscale.errors import ConfigError
from nextscale.memory import release_freed_memory
from nextscale.modality import BenchCase
from nextscale.sampling.generate import generate
from nextscale.sampling.precision import check_precision, multiplies, prepare
from nextscale.storage.models import new_transformer
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer

TARGETS = {torch.float32: 1.2, torch.bfloat16: 1.3, torch.float16: 1.3}
"""The ratio of sampling time to its floor that this project aims for (at batch 1)."""


def bench_sample(
    modality: str,
    cases: Sequence[BenchCase],
    precisions: Sequence[str] = ("fp32", "bf16"),
    batch_size: int = 1,
    memory_batch: int = 8,
    repeats: int = 3,
    overrides: Sequence[str] = (),
    *,
    device: str = "auto",
    seconds: float = 180.0,
    log: Callable[[str], None] | None = None,
    clock: Clock = time.perf_counter,
) -> list[dict[str, Any]]:
    """Time sampling (all scales, with guidance, then decoding) with untrained models, and the floor of its products.

    The floor is every matrix product and convolution of transformer, head and decoder, each shape timed alone with
    weights that come from memory (``Floor``, cold). Sampling and floor are timed in turns; the medians count.

    Args:
        cases: the cases to time; each needs a ``description`` and ``conditions``, because no data are opened.
        precisions: precisions of the weights; see ``nextscale.sampling.precision``.
        batch_size: samples drawn at once.
        memory_batch: samples drawn at once when memory is measured; 0 for no measurement.
        repeats: number of turns, after one that is dropped.
        overrides: ``key=value`` settings that override every preset.
        seconds: no further turn begins once a row has taken this long.
        log: called with a line before each row.

    Returns:
        One row per case and precision. ``sample_ms`` is the sum of ``transformer_ms`` and ``decoder_ms``;
        ``floor_ratio`` is ``sample_ms`` over ``floor_ms``. ``peak_mib``: how far drawing ``memory_batch`` samples
        raised the process's memory above its level before the models were built (None if the system does not report
        it). ``paper_mib``: weights, key/value cache, and the activations of the operation with the most.
        ``memory_ratio`` is ``peak_mib`` over ``paper_mib``.

    Raises:
        ConfigError: an unknown preset, precision or setting, or a preset without a description.
    """
    for precision in precisions:
        check_precision(precision)
    if min(batch_size, repeats) < 1 or memory_batch < 0:
        raise ConfigError("batch_size and repeats must be at least 1, memory_batch at least 0")
    where = pick_device(device)
    rows = []
    for case in cases:
        for precision in precisions:
            if log is not None:
                log(f"{case.preset} {precision}")
            if case.description is None:
                raise ConfigError(f"bench sample has no description of the data of preset {case.preset!r}")
            release_freed_memory()  # else memory left over from an earlier precision is reused, uncounted
            base = memory_in_use(where)
            sampler = _Sampler(modality, case, precision, overrides, where)
            row = _row(sampler, batch_size, memory_batch, repeats, seconds, clock, base)
            note = _note(sampler.dtype, where)
            rows.append({"preset": case.preset, "precision": precision, **row, "target": sampler.target, "note": note})
            del sampler
    return rows


class _Sampler:
    """Untrained models of a preset, and one way to draw from them."""

    def __init__(
        self,
        modality: str,
        case: BenchCase,
        precision: str,
        overrides: Sequence[str],
        device: torch.device,
    ) -> None:
        config = load_config(modality, case.preset, None, overrides)
        torch.manual_seed(config.seed)
        self.device = device
        self.tokenizer: MultiscaleTokenizer = (
            plugins.modality(modality).build_tokenizer(config.tokenizer, case.description or {}).to(device).eval()
        )
        self.transformer: ScaleTransformer = (
            new_transformer(config.transformer, self.tokenizer, case.conditions).to(device).eval()
        )
        prepare(self.tokenizer, self.transformer, precision)
        self.dtype = autocast_dtype(precision, device) or torch.float32
        self.target = TARGETS[self.dtype]
        self.config: SamplingConfig = config.sampling
        self.specs: Sequence[ConditionSpec] = case.conditions

    def draw(self, number: int) -> Any:
        """The state of ``number`` samples, ready to be decoded."""
        conditions = {
            spec.name: torch.zeros(number, dtype=torch.long, device=self.device)
            if spec.kind == "class"
            else torch.zeros(number, spec.size, device=self.device)
            for spec in self.specs
        }
        generators = [torch.Generator(self.device).manual_seed(i) for i in range(number)]
        return generate(self.tokenizer, self.transformer, number, conditions, self.config, generators).state

    @torch.inference_mode()
    def decode(self, state: Any) -> Any:
        return self.tokenizer.decode(state)

    def products(self, number: int) -> Counter[Any]:
        """Draw and decode ``number`` samples; returns the products of transformer and decoder (not those of f_hat)."""
        products = MatrixProducts(convolutions=True)
        products.counting = False
        hooks = [
            self.transformer.register_forward_pre_hook(lambda *_: setattr(products, "counting", True)),
            self.transformer.register_forward_hook(lambda *_: setattr(products, "counting", False)),
        ]
        try:
            with products:
                state = self.draw(number)
                products.counting = True
                self.decode(state)
                self.modulate(number)  # drawing does this before it calls the transformer
        finally:
            for hook in hooks:
                hook.remove()
        return products.counts

    @torch.inference_mode()
    def modulate(self, number: int) -> None:
        width = self.transformer.config.model_width
        self.transformer.modulation(torch.zeros(number * self.branches, width, device=self.device))

    @property
    def branches(self) -> int:
        """Rows per sample in the transformer's batch: guidance needs two."""
        return 2 if self.specs and self.config.guidance > 0 else 1

    def _models(self) -> list[nn.Module]:
        return [self.tokenizer, self.transformer]

    def weights(self) -> int:
        return sum(tensor.nbytes for model in self._models() for tensor in model.state_dict().values())

    def cache(self, number: int) -> int:
        """Bytes of the keys and values of all layers, tokens and branches."""
        config = self.transformer.config
        numbers = 2 * config.depth * number * self.branches * self.tokenizer.schedule().length * config.model_width
        return numbers * (self.dtype.itemsize if multiplies(self.dtype, self.device) else 4)


def _row(
    sampler: _Sampler, batch_size: int, memory_batch: int, repeats: int, seconds: float, clock: Clock, base: int | None
) -> dict[str, Any]:
    device = sampler.device
    memory = _measure_memory(sampler, memory_batch, base) if memory_batch else {}
    counts = sampler.products(batch_size)

    now = partial(synchronized, clock, device)
    states: list[Any] = []

    def draw() -> float:
        start = now()
        states[:] = [sampler.draw(batch_size)]
        return now() - start

    def decode() -> float:
        start = now()
        sampler.decode(states[0])
        return now() - start

    floor = Floor(counts, now, cold=True)
    # Time the floor before and after the sampling that it is compared with.
    turn = [("floor", floor), ("draw", draw), ("decode", decode), ("floor", floor)]
    took = typical(turn, repeats, seconds)
    total = took["draw"] + took["decode"]
    return {
        "threads": torch.get_num_threads(),
        "batch": batch_size,
        "transformer_ms": took["draw"] * 1e3,
        "decoder_ms": took["decode"] * 1e3,
        "sample_ms": total * 1e3,
        "floor_ms": took["floor"] * 1e3,
        "floor_gflops": floor.flops / took["floor"] / 1e9,
        "floor_ratio": total / took["floor"],
        **memory,
    }


def _measure_memory(sampler: _Sampler, number: int, base: int | None) -> dict[str, Any]:
    """Peak memory of drawing ``number`` samples in MiB, measured and on paper."""
    reset_peak(sampler.device)
    counts = sampler.products(number)
    peak = peak_memory(sampler.device)
    paper = sampler.weights() + sampler.cache(number) + max(product.activation_bytes for product in counts)
    used = None if peak is None or base is None else peak - base
    return {
        "memory_batch": number,
        "peak_mib": None if used is None else used / MIB,
        "paper_mib": paper / MIB,
        "memory_ratio": None if used is None else used / paper,
    }


def _note(dtype: torch.dtype, device: torch.device) -> str:
    if dtype == torch.float32 or multiplies(dtype, device):
        return ""
    return "stored in half precision, multiplied in float32: this CPU has no fast half-precision arithmetic"
