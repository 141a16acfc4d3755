"""The training loop, the same for all stages: step, validate, save, and exact resumption after an interrupt.

Everything random is a function of (seed, step, position), so a checkpoint holds only weights, optimizer state and a
step number. It does not depend on the number of processes.
"""

from __future__ import annotations

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

from nextscale import distributed
from nextscale.config.sections import Shard, StageConfig
from nextscale.errors import CheckpointError, TrainingError
from nextscale.memory import keep_freed_memory
from nextscale.storage.checkpoint import load_checkpoint, save_checkpoint
from nextscale.storage.checkpoint_folder import check_checkpoint, clear_partials, latest_checkpoint, remove_checkpoint
from nextscale.training.best import BEST, FORMER, sort_out_best
from nextscale.training.clock import Pace, ending_at, with_steps
from nextscale.training.feeding import Feed
from nextscale.training.log import RunLog, StageDisplay, or_warn
from nextscale.training.optim import as_written, cooldown_begins
from nextscale.training.signals import InterruptFlag
from nextscale.training.stage import Stage
from nextscale.training.step import Stepper


class Trainer:
    """Trains one stage to its last step, with its checkpoints in ``folder``: call ``restore``, then ``run``.

    Args:
        pace: decides how many steps fit into the time; None takes the configured number.
        shard: how many processes share one copy of a transformer (``training.shard``).
        workers: processes that read samples (``training.workers``).
        on_change: is told the new settings of the stage, once a checkpoint is saved, whenever its last step changes.

    Raises:
        ConfigError: the batch cannot be split over the processes.
        CheckpointError: the checkpoint is damaged, or goes with other weights than ``stage.rests_on``.
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
        self.stage, self.folder, self.log, self.device = stage, folder, log, device
        self.stepper = Stepper(stage, seed, device, shard)
        self.workers = workers if stage.reads_samples else 0
        self._unread: list[Tensor | float] = []  # losses of steps that the host has not waited for
        self.best = {"loss": math.inf, "step": -1}

    @property
    def config(self) -> StageConfig:
        """The settings of the stage; its last step may change on the way."""
        return self.stepper.config

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return self.stepper.step

    def restore(self, path: Path | None, going_back: bool = False) -> None:
        """Continue from a checkpoint, or from the start if ``path`` is None.

        ``going_back``: the user chose this checkpoint, so training abandons the later ones. They are set aside.
        """
        if path is not None:
            stepper = self.stepper
            saved = load_checkpoint(path, stepper.modules(), stepper.optimizers_by_name())
            for part, weights in self.stage.rests_on.items():
                if saved.get("rests_on", {}).get(part, weights) != weights:
                    raise CheckpointError(
                        f"{path} goes with another {part} than the run has now: remove {self.folder} to train the "
                        f"{self.stage.name} anew, or put that {part} back"
                    )
            stepper.step = saved["step"]
            if stepper.scaler.is_enabled() and saved["scaler"]:
                stepper.scaler.load_state_dict(saved["scaler"])
        self.log.rewind(self.stage.name, self.step)
        if distributed.is_main():  # now, because a stage that has done its last step saves nothing more
            clear_partials(self.folder)
        if path is not None:
            self._settle_best(going_back)

    def run(self) -> None:
        tokens = self.config.batch_size * self.stage.tokens_per_sample
        display = self.log.stage(self.stage.name, self.config.steps, self.step, tokens)
        memory = keep_freed_memory() if self.device.type == "cpu" else nullcontext()
        with memory, InterruptFlag() as flag, Feed(self.stepper.read, self.step, self.workers) as feed, display as show:
            while self.step < self.config.steps:
                metrics = self.stepper.train_step(feed.next())
                self._unread.append(metrics["loss"])
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
                    flag.stop(self.stage.name, self.step, self.stage.resumed_by)
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
        if 0 < self.config.patience <= stale and self.best["step"] >= 0 and not cooling:
            why = f"because the validation loss has not fallen since step {self.best['step']}"
            self._end_at(min(self.config.steps, ending_at(self.step, self.config)), why, show)

    def _end_at(self, steps: int, why: str, show: StageDisplay) -> None:
        if steps == self.config.steps:
            return
        self.stepper.config = with_steps(self.config, steps)
        show.end_at(steps, why)
        if self.step < steps:  # the last step saves anyway
            show.checkpoint(self.step, self._save())
        if self.on_change is not None:
            self.on_change(self.config)

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
                with self.stepper.autocast():
                    scalars = objective.validate(model, batch)
                for key, value in scalars.items():
                    sums[key] = sums.get(key, 0.0) + float(value) * weight
                count += weight
        values = torch.tensor([*sums.values(), count], dtype=torch.float64, device=self.device)
        *values, whole = distributed.total(values).tolist()
        means = {key: value / whole for key, value in zip(sums, values, strict=True)}
        self._check_finite(means["loss"], "validation loss")
        complete = self.step >= min(objective.complete_from, self.config.steps)
        if complete and means["loss"] < self.best["loss"]:
            self.best = {"loss": means["loss"], "step": self.step}
            modules = {"model": self.stepper.result}
            save_checkpoint(self.folder, self.step, modules, {}, {}, self.best, keep=1, name=BEST, former=FORMER)
        return means

    @contextmanager
    def _evaluated(self) -> Iterator[nn.Module]:
        """The result in evaluation mode, with whole weights, not compiled. All processes must enter, to gather them;
        inside, they may do different things."""
        sharded, result = self.stepper.sharded, self.stepper.result
        whole = sharded.gathered(result) if sharded else nullcontext(result)
        with as_written(self.config.compile), whole as model:
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

    def _save(self) -> Path | None:
        for name, module in self.stepper.modules().items():
            values = [distributed.local(value) for value in module.state_dict().values() if value.is_floating_point()]
            wrong = ~torch.stack([value.isfinite().all() for value in values]).all()
            # Of a sharded model, one process alone may see it, and all must stop.
            self._check_finite(math.nan if distributed.total(wrong.float()) else 1.0, f"weight of the {name}")
        modules, optimizers = self.stepper.modules(), self.stepper.optimizers_by_name()
        state: dict[str, Any] = {"scaler": self.stepper.scaler.state_dict()}
        if self.stage.rests_on:
            state["rests_on"] = dict(self.stage.rests_on)
        saved = save_checkpoint(self.folder, self.step, modules, {}, optimizers, state, self.config.keep)
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
        if self.stepper.sharded:
            self.stepper.sharded.restore()
        load_checkpoint(self.folder / BEST, {"model": self.stage.model})
        self.stage.model.eval()
        distributed.barrier()
        if distributed.is_main():  # kept only until the best weights were seen to be sound
            remove_checkpoint(self.folder / FORMER)
