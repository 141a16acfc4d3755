"""The training loop, the same for both stages: step, validate, save, and exact resumption after an interrupt.

Everything random is a function of (seed, step, position), so a checkpoint holds only weights, optimizer state and a
step number. It does not depend on the number of processes.
"""

from __future__ import annotations

import inspect
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
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
from nextscale.memory import keep_freed_memory
from nextscale.randomness import Draws, mixed_seed
from nextscale.storage.checkpoint import load_checkpoint, save_checkpoint
from nextscale.storage.checkpoint_folder import check_checkpoint, clear_partials, latest_checkpoint, remove_checkpoint
from nextscale.training.best import BEST, FORMER, sort_out_best
from nextscale.training.clock import Pace, ending_at, with_steps
from nextscale.training.feeding import Feed
from nextscale.training.log import RunLog, StageDisplay, or_warn
from nextscale.training.optim import EMA, as_written, build_optimizer, compile_model, cooldown_begins, lr_factor
from nextscale.training.sharding import ShardedModel, group_size, has_blocks
from nextscale.training.signals import InterruptFlag
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


class Trainer:
    """Trains one stage to its last step, with its checkpoints in ``folder``: call ``restore``, then ``run``.

    Args:
        pace: decides how many steps fit into the time; None takes the configured number.
        shard: how many processes share one copy of a transformer (``training.shard``).
        workers: processes that read samples (``training.workers``).
        on_change: is told the new settings of the stage, once a checkpoint is saved, whenever its last step changes.

    Raises:
        ConfigError: the batch cannot be split over the processes.
        TrainingError: the loss is not finite (the last good checkpoint stays), or the disk is full.
        Interrupted: after SIGINT or SIGTERM, once a checkpoint is saved.
    """

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        log: RunLog,
        seed: int,
        device: torch.device,
        pace: Pace | None = None,
        on_change: Callable[[StageConfig], None] | None = None,
        shard: Shard = "none",
        workers: int = 0,
    ) -> None:
        self.pace, self.on_change = pace, on_change
        self.stage, self.config, self.folder, self.log, self.device = stage, stage.config, folder, log, device
        self.seed = mixed_seed(seed, *stage.name.encode())
        self.micro_batch = micro_batch_size(self.config, stage.name)
        self.workers = workers if stage.reads_samples else 0
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
        self._unread: list[Tensor | float] = []  # losses of steps that the host has not waited for
        self.best = {"loss": math.inf, "step": -1}
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

    def restore(self, path: Path | None, going_back: bool = False) -> None:
        """Continue from a checkpoint, or from the start if ``path`` is None.

        ``going_back``: the user chose this checkpoint, so training abandons the later ones. They are set aside.
        """
        if path is not None:
            saved = load_checkpoint(path, self._modules(), self._optimizers())
            self.step = saved["step"]
            if self.scaler.is_enabled() and saved["scaler"]:
                self.scaler.load_state_dict(saved["scaler"])
        self.log.rewind(self.stage.name, self.step)
        if distributed.is_main():  # now, because a stage that has done its last step saves nothing more
            clear_partials(self.folder)
        if path is not None:
            self._settle_best(going_back)

    def run(self) -> None:
        tokens = self.config.batch_size * self.stage.tokens_per_sample
        display = self.log.stage(self.stage.name, self.config.steps, self.step, tokens)
        memory = keep_freed_memory() if self.device.type == "cpu" else nullcontext()
        with memory, InterruptFlag() as flag, Feed(self.read, self.step, self.workers) as feed, display as show:
            while self.step < self.config.steps:
                batches = feed.next()
                with self._enough_memory():
                    metrics = self.train_step(batches)
                self.step += 1
                interrupted = self._agree(flag)
                self._keep_pace(show)
                last = self.step == self.config.steps
                log = self.step % self.config.log_every == 0 or last
                every = self.config.validate_every, self.config.checkpoint_every
                if log or interrupted or any(self.step % each == 0 for each in every):
                    values = self._read(metrics)
                    if log:
                        show.step(self.step, values, feed.waited)
                if self.step % self.config.validate_every == 0 or last:
                    show.validation(self.step, self.validate())
                    self._keep_patience(show)
                    last = self.step == self.config.steps
                if self.config.samples_every and (self.step % self.config.samples_every == 0 or last):
                    show.samples(self.step, self._picture())
                if self.step % self.config.checkpoint_every == 0 or last or interrupted:
                    show.checkpoint(self.step, self._save())
                if interrupted:
                    flag.stop(self.stage.name, self.step)
        self._restore_best()

    # When to end.

    def _keep_pace(self, show: StageDisplay) -> None:
        """Change the last step if the time that is left asks for it."""
        if self.pace is None:
            return
        steps = self.pace.steps(self.step, self.config)
        if distributed.world_size() > 1:  # the first process decides
            mine = torch.tensor(float(steps) if distributed.is_main() else 0.0, device=self.device, dtype=torch.float64)
            steps = int(distributed.total(mine))
        self._end_at(steps, "to fit into the time that is left", show)

    def _keep_patience(self, show: StageDisplay) -> None:
        """End, or cool down, if the validation loss has not fallen for ``config.patience`` validations."""
        stale = (self.step - self.best["step"]) // self.config.validate_every
        cooling = self.config.schedule == "trapezoid" and self.step >= cooldown_begins(self.config)
        if 0 < self.config.patience <= stale and not cooling:
            why = f"because the validation loss has not fallen since step {self.best['step']}"
            self._end_at(min(self.config.steps, ending_at(self.step, self.config)), why, show)

    def _end_at(self, steps: int, why: str, show: StageDisplay) -> None:
        if steps == self.config.steps:
            return
        self.config = with_steps(self.config, steps)
        show.end_at(steps, why)
        if self.step < steps:  # the last step saves anyway
            show.checkpoint(self.step, self._save())
        if self.on_change is not None:
            self.on_change(self.config)

    # One step.

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
        for the step to end (``_read``)."""
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
        self._unread.append(metrics["loss"])
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
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    loss, extra = module(batch, self.step, self._draws(rows, salt=number))
                self.scaler.scale(loss / len(batches)).backward()
            for key, value in {"loss": loss, **extra}.items():
                part = value.detach().double() / len(batches)
                sums[key] = sums[key] + part if key in sums else part
        return sums

    def _draws(self, rows: slice, salt: int) -> Draws:
        return Draws(mixed_seed(self.seed, salt), self.step, rows, self.config.batch_size, self.device)

    def _agree(self, flag: InterruptFlag) -> bool:
        """Whether any process was interrupted."""
        if distributed.world_size() > 1:
            told = [float(flag.raised), float(flag.signal) if flag.raised else 0.0]
            values = torch.tensor(told, dtype=torch.float64, device=self.device)
            raised, number = distributed.total(values).tolist()
            if raised:
                flag.raised, flag.signal = True, signal.Signals(round(number / raised))
        return flag.raised

    def _read(self, metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
        """The scalars of a step, each the mean over processes; raises if a loss since the last reading is not finite.

        The host waits for the device once.
        """
        every = [*metrics.values(), *self._unread]
        values = torch.stack([torch.as_tensor(one, dtype=torch.float64, device=self.device) for one in every])
        means = (distributed.total(values) / distributed.world_size()).tolist()
        known, losses = means[: len(metrics)], means[len(metrics) :]
        self._unread.clear()
        for step, loss in enumerate(losses, self.step - len(losses) + 1):
            self._check_finite(loss, "loss", step)
        return dict(zip(metrics, known, strict=True))

    def _check_finite(self, value: float, what: str, step: int | None = None) -> None:
        if not math.isfinite(value):
            good = latest_checkpoint(self.folder)
            kept = f"the last good checkpoint is {good}" if good else "no checkpoint was saved yet"
            raise TrainingError(
                f"{self.stage.name} {what} is {value} at step {step or self.step}: training stopped, {kept}; "
                f"try a lower training.{self.stage.name}.lr"
            )

    # Validation, pictures, checkpoints.

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The mean of each validation scalar; saves the weights if ``loss`` is the lowest so far."""
        objective = self.stage.objectives[0]
        sums: dict[str, float] = {}
        count = 0
        with self._evaluated() as model:
            for indices, weight in self._validation_share():
                batch = self.stage.validation_batch(indices).to(self.device)
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    scalars = objective.validate(model, batch)
                for key, value in scalars.items():
                    sums[key] = sums.get(key, 0.0) + float(value) * weight
                count += weight
        values = torch.tensor([*sums.values(), count], dtype=torch.float64, device=self.device)
        *values, whole = distributed.total(values).tolist()
        means = {key: value / whole for key, value in zip(sums, values, strict=True)}
        self._check_finite(means["loss"], "validation loss")
        if means["loss"] < self.best["loss"]:
            self.best = {"loss": means["loss"], "step": self.step}
            modules = {"model": self.result}
            save_checkpoint(self.folder, self.step, modules, {}, {}, self.best, keep=1, name=BEST, former=FORMER)
        return means

    @contextmanager
    def _evaluated(self) -> Iterator[nn.Module]:
        """The result in evaluation mode, with whole weights, not compiled. All processes must enter, to gather them;
        inside, they may do different things."""
        whole = self.sharded.gathered(self.result) if self.sharded else nullcontext(self.result)
        with as_written() if self.config.compile else nullcontext(), whole as model:
            was_training = model.training
            model.eval()
            try:
                yield model
            finally:
                model.train(was_training)

    def _validation_share(self) -> list[tuple[np.ndarray, int]]:
        """This process's index batches of the validation samples, each with its weight."""
        batches = self.stage.validation()
        mine = batches[distributed.rank() :: distributed.world_size()]
        # If batches are too few, some processes repeat the first with weight 0, so that all have the same keys.
        return [(indices, len(indices)) for indices in mine] or [(batches[0], 0)]

    @torch.no_grad()
    def _picture(self) -> Path | None:
        with self._evaluated() as model:
            if not distributed.is_main():
                return None
            path = self.log.folder / "samples" / f"{self.stage.name}-{self.step:08d}"
            began = time.monotonic()
            written = or_warn(path, lambda: self.stage.draw_samples(model, path))
            if self.pace is not None:  # another picture follows the last step, and one of the best weights
                self.pace.reserve = 2 * (time.monotonic() - began)
            return written

    def _modules(self) -> dict[str, nn.Module]:
        modules = {objective.name: objective.model for objective in self.stage.objectives}
        return modules | ({"ema": self.ema.model} if self.ema else {})

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {o.name: optimizer for o, optimizer in zip(self.stage.objectives, self.optimizers, strict=True)}

    def _save(self) -> Path | None:
        for name, module in self._modules().items():
            values = [distributed.local(value) for value in module.state_dict().values() if value.is_floating_point()]
            wrong = ~torch.stack([value.isfinite().all() for value in values]).all()
            # Of a sharded model, one process alone may see it, and all must stop.
            self._check_finite(math.nan if distributed.total(wrong.float()) else 1.0, f"weight of the {name}")
        state = {"scaler": self.scaler.state_dict()}
        keep = self.config.keep
        saved = save_checkpoint(self.folder, self.step, self._modules(), {}, self._optimizers(), state, keep)
        return saved if distributed.is_main() else None

    def _settle_best(self, going_back: bool = False) -> None:
        """Read the loss of the best weights so far into ``self.best`` (``best.sort_out_best``); they may be newer than
        the checkpoint to resume from."""
        judge = False

        def look() -> None:
            nonlocal judge
            judge = sort_out_best(self.folder, self.step if going_back else None, self.log.note)

        distributed.on_main(look)
        judge = bool(distributed.total(torch.tensor(float(judge), device=self.device)))
        found = self.folder / BEST
        self.best = check_checkpoint(found)["state"] if found.exists() else {"loss": math.inf, "step": -1}
        if judge:
            loss = self.validate()["loss"]
            self.log.note(f"{self.stage.name}: the weights of step {self.step} have a validation loss of {loss:.4f}")

    def _restore_best(self) -> None:
        """Load the best weights into ``stage.model``."""
        distributed.barrier()
        self._settle_best()
        distributed.barrier()
        if self.sharded:
            self.sharded.restore()
        load_checkpoint(self.folder / BEST, {"model": self.stage.model})
        self.stage.model.eval()
        distributed.barrier()
        if distributed.is_main():  # kept only until the best weights were seen to be sound
            remove_checkpoint(self.folder / FORMER)
