"""One optimizer step of a stage: its models, optimizers and moving average, on one process or several."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nextscale import distributed
from nextscale.config.sections import Shard, StageConfig
from nextscale.data import Batch
from nextscale.device import autocast_dtype, is_out_of_memory
from nextscale.errors import ConfigError, TrainingError
from nextscale.randomness import Draws, mixed_seed
from nextscale.training.optim import EMA, build_optimizer, compile_model, lr_factor
from nextscale.training.sharding import ShardedModel, group_size, has_blocks
from nextscale.training.stage import Stage


def micro_batch_size(config: StageConfig, stage: str) -> int:
    """Number of samples in a micro-batch: a global batch is split over processes and accumulation.

    Raises:
        ConfigError: the batch does not split evenly.
    """
    parts = distributed.world_size() * config.accumulate
    if config.batch_size % parts:
        raise ConfigError(
            f"training.{stage}.batch_size {config.batch_size} is not a multiple of "
            f"{distributed.world_size()} processes x {config.accumulate} accumulated micro-batches"
        )
    return config.batch_size // parts


class Stepper:
    """Takes the optimizer steps of a stage. ``step`` is the number of the next one, from 0.

    Args:
        shard: how many processes share one copy of a transformer (``training.shard``).

    Raises:
        ConfigError: the batch cannot be split over the processes.
    """

    def __init__(self, stage: Stage, seed: int, device: torch.device, shard: Shard = "none") -> None:
        self.stage, self.config, self.device = stage, stage.config, device
        self.seed = mixed_seed(seed, *stage.name.encode())
        self.micro_batch = micro_batch_size(self.config, stage.name)
        for objective in stage.objectives:
            objective.to(device).train()
        first = stage.objectives[0]
        sharded = group_size(shard, distributed.world_size()) > 1 and has_blocks(first.model)
        self.sharded = ShardedModel(first, shard, device) if sharded else None
        self.optimizers = [
            build_optimizer(objective.model, self.config, lr)
            for objective, lr in zip(stage.objectives, stage.learning_rates, strict=True)
        ]
        copied = self.sharded.copied() if self.sharded else None
        self.ema = EMA(stage.model, self.config.ema, copied) if self.config.ema > 0 else None
        self.dtype = autocast_dtype(self.config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.step = 0
        if self.config.compile:
            compile_model(stage.model)
        self.wrapped: list[nn.Module] = [self._wrap(objective) for objective in stage.objectives]

    def _wrap(self, objective: nn.Module) -> nn.Module:
        if distributed.world_size() == 1 or (self.sharded and objective is self.sharded.objective):
            return objective
        ids = [self.device] if self.device.type == "cuda" else None
        # Buffers (codebook statistics) are computed from all-reduced counts, so they agree without a broadcast.
        renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # torch 2.13
        options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        # Some parameters may stay unused in a step: convolutions that few scales share, a null that is never drawn.
        return DistributedDataParallel(objective, device_ids=ids, find_unused_parameters=True, **options)

    @property
    def result(self) -> nn.Module:
        """The model that is validated, sampled and kept: the moving average if there is one."""
        return self.ema.model if self.ema else self.stage.model

    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds the weights of."""
        modules = {objective.name: objective.model for objective in self.stage.objectives}
        return modules | ({"ema": self.ema.model} if self.ema else {})

    def optimizers_by_name(self) -> dict[str, torch.optim.Optimizer]:
        return {o.name: optimizer for o, optimizer in zip(self.stage.objectives, self.optimizers, strict=True)}

    def autocast(self) -> torch.autocast:
        """The precision of the stage."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def read(self, step: int) -> list[Batch]:
        """The micro-batches of a step, on the CPU."""
        positions = step * self.config.batch_size + np.arange(self.config.batch_size)
        return [self.stage.batch(positions[rows]) for rows in self._rows()]

    def _rows(self) -> list[slice]:
        """For each of this process's micro-batches, its rows of the global batch."""
        first = distributed.rank() * self.config.accumulate
        size = self.micro_batch
        return [slice((first + i) * size, (first + i + 1) * size) for i in range(self.config.accumulate)]

    def train_step(self, batches: list[Batch]) -> dict[str, Tensor | float]:
        """One optimizer step of every objective; returns the scalars to log, on the device, because reading one waits
        for the step to end.

        Raises:
            TrainingError: the device has too little memory; the message says which settings take less.
        """
        with self._enough_memory():
            metrics = self._train_step(batches)
        self.step += 1
        return metrics

    def _train_step(self, batches: list[Batch]) -> dict[str, Tensor | float]:
        factor = lr_factor(self.step, self.config)
        batches = [batch.to(self.device) for batch in batches]
        metrics: dict[str, Tensor | float] = {}
        for number, (objective, module, optimizer, lr) in enumerate(
            zip(self.stage.objectives, self.wrapped, self.optimizers, self.stage.learning_rates, strict=True)
        ):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            # Only now, because an earlier objective's backward may have left gradients in this model (an opponent).
            optimizer.zero_grad(set_to_none=True)
            sums = self._backward(module, batches, number)
            self.scaler.unscale_(optimizer)
            clip = self.config.clip or math.inf
            norm = torch.nn.utils.clip_grad_norm_(objective.model.parameters(), clip)
            self.scaler.step(optimizer)
            prefix = "" if number == 0 else f"{objective.name}/"
            metrics |= {f"{prefix}{key}": value for key, value in sums.items()}
            metrics |= {f"{prefix}lr": lr * factor, f"{prefix}grad_norm": distributed.whole(norm)}
        self.scaler.update()
        for objective in self.stage.objectives:
            objective.after_step(self.step, self._draws(slice(0, 0), salt=1000))
        if self.ema:
            self.ema.update(self.stage.model, self.step)
        return metrics

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        """Say which settings take less memory if the device has too little."""
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            name, remedies = f"training.{self.stage.name}", []
            if self.micro_batch % 2 == 0:
                remedies.append(f"{name}.accumulate={2 * self.config.accumulate} (same result, half as many at a time)")
            if hasattr(self.config, "checkpoint_activations") and has_blocks(self.stage.model):
                remedies += [f"{name}.checkpoint_activations=true", "training.shard=full on several devices"]
            remedies.append(f"a smaller {name}.batch_size than {self.config.batch_size}")
            raise TrainingError(
                f"{self.device} has too little memory for {self.micro_batch} samples at a time at step {self.step}: "
                f"set {', or '.join(remedies)}"
            ) from None

    def _backward(self, module: nn.Module, batches: list[Batch], number: int) -> dict[str, Tensor]:
        """Accumulate the gradients of all micro-batches; returns the mean of each logged scalar."""
        sums: dict[str, Tensor] = {}
        for i, (batch, rows) in enumerate(zip(batches, self._rows(), strict=True)):
            last = i == len(batches) - 1
            hold = isinstance(module, DistributedDataParallel) and not last
            with module.no_sync() if hold else nullcontext():  # type: ignore[operator]
                with self.autocast():
                    loss, extra = module(batch, self.step, self._draws(rows, salt=number))
                self.scaler.scale(loss / len(batches)).backward()
            for key, value in {"loss": loss, **extra}.items():
                part = value.detach().double() / len(batches)
                sums[key] = sums[key] + part if key in sums else part
        return sums

    def _draws(self, rows: slice, salt: int) -> Draws:
        return Draws(mixed_seed(self.seed, salt), self.step, rows, self.config.batch_size, self.device)
