"""A few steps of both stages with untrained weights, to see how long they take on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nextscale.config.sections import RunConfig
from nextscale.data import Batch, DataSplits
from nextscale.device import cpu_threads
from nextscale.memory import keep_freed_memory
from nextscale.modality import Modality
from nextscale.storage.models import new_transformer
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.training.stage import Stage
from nextscale.training.step import Stepper
from nextscale.training.tokenizer_stage import TokenizerStage
from nextscale.training.transformer_stage import TransformerObjective, TransformerStage

FASTER = 0.8
"""Time on one thread, as a share of that on all, from which one thread counts as clearly faster."""
ENCODED = 32
"""Samples that are encoded at once."""


@dataclass(frozen=True)
class Timing:
    """Seconds on this machine, and the size of the models.

    Attributes:
        tokenizer, transformer: per optimizer step; 0 for a tokenizer without weights. The transformer's is on cached
            tokens, where tokens can be cached.
        encode: per sample, to make its tokens; 0 if tokens cannot be cached, because it is then part of the step.
        weights: of the transformer.
        tokens: per sample.
    """

    tokenizer: float
    transformer: float
    encode: float
    weights: int
    tokens: int


class Pilot:
    """Times configurations. What only the tokenizer's settings decide is timed once for all that share them."""

    def __init__(self, modality: Modality, data: DataSplits, device: torch.device) -> None:
        self.modality, self.data, self.device = modality, data, device
        self.known: dict[str, tuple[float, float]] = {}

    def fewer_threads(self, config: RunConfig) -> int | None:
        """1 if the machine is so busy that one CPU thread is clearly faster than the usual number, else None."""
        usual = torch.get_num_threads()
        if self.device.type != "cpu" or usual == 1 or config.training.threads is not None:
            return None
        took = {}
        for number in (1, usual):
            self.known.clear()
            with cpu_threads(number):
                timing = self.time(config, warmup=1, timed=2)
            took[number] = timing.tokenizer + timing.transformer
        self.known.clear()
        return 1 if took[1] < FASTER * took[usual] else None

    def time(self, config: RunConfig, warmup: int = 2, timed: int = 4) -> Timing:
        """Time ``timed`` steps of each stage, after ``warmup`` steps, which also allocate memory."""
        self.warmup, self.timed = warmup, timed
        with keep_freed_memory() if self.device.type == "cpu" else nullcontext():
            tokenizer = self.modality.build_tokenizer(config.tokenizer, self.data.description).to(self.device)
            key = config.tokenizer.model_dump_json() + config.training.tokenizer.model_dump_json()
            if key not in self.known:
                self.known[key] = self._time_tokenizer(tokenizer, config)
            first, encode = self.known[key]
            return self._time_transformer(tokenizer.eval(), config, first, encode)

    def _time_tokenizer(self, tokenizer: MultiscaleTokenizer, config: RunConfig) -> tuple[float, float]:
        """Seconds per step, and per encoded sample."""
        step = 0.0
        if any(parameter.requires_grad for parameter in tokenizer.parameters()):
            settings = config.training.tokenizer
            step = self._steps(
                TokenizerStage(self.modality, tokenizer, config.tokenizer, self.data, settings, config.seed), config
            )
        if tokenizer.adaptive:
            return step, 0.0
        samples = self._stage(tokenizer.eval(), config).batch(np.arange(ENCODED)).samples.to(self.device)
        with torch.no_grad():
            took = [self._seconds(partial(tokenizer.encode, samples)) for _ in range(2)]
        return step, min(took) / ENCODED

    def _time_transformer(
        self, tokenizer: MultiscaleTokenizer, config: RunConfig, first: float, encode: float
    ) -> Timing:
        stage = self._stage(tokenizer, config)
        seconds = self._steps(stage if tokenizer.adaptive else _Encoded(stage, self.device), config)
        weights = sum(parameter.numel() for parameter in stage.model.parameters())
        return Timing(first, seconds, encode, weights, stage.tokens_per_sample)

    def _stage(self, tokenizer: MultiscaleTokenizer, config: RunConfig) -> TransformerStage:
        transformer = new_transformer(config.transformer, tokenizer, self.data.conditions).to(self.device)
        settings = config.training.transformer
        return TransformerStage(
            self.modality, tokenizer, transformer, self.data, None, settings, config.sampling, config.seed
        )

    def _steps(self, stage: Stage, config: RunConfig) -> float:
        stepper = Stepper(stage, config.seed, self.device)
        took = []
        for step in range(self.warmup + self.timed):
            batches = stepper.read(step)  # training reads the next batch meanwhile
            took.append(self._seconds(partial(stepper.train_step, batches)))
        return sum(took[self.warmup :]) / self.timed

    def _seconds(self, work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


class _Encoded(Stage):
    """``stage`` on the tokens of its first batch, as if they came from a cache."""

    def __init__(self, stage: TransformerStage, device: torch.device) -> None:
        self.name, self.config, self.objectives = stage.name, stage.config, stage.objectives
        self.learning_rates, self.tokens_per_sample = stage.learning_rates, stage.tokens_per_sample
        self.stage, self.device = stage, device
        self.one: Batch | None = None

    def batch(self, positions: np.ndarray) -> Batch:
        if self.one is None:
            batch, objective = self.stage.batch(positions).to(self.device), self.stage.objectives[0]
            assert isinstance(objective, TransformerObjective)
            self.one = Batch(objective.pyramid(batch), batch.conditions)
        return self.one

    def validation(self) -> list[np.ndarray]:
        return self.stage.validation()

    def validation_batch(self, indices: np.ndarray) -> Batch:
        return self.stage.validation_batch(indices)

    def draw_samples(self, model: nn.Module, path: Path) -> Path | None:
        return None
