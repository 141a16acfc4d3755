"""What a run reports while it trains: a progress display for people, metrics.jsonl for programs."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nextscale import distributed
from nextscale.callbacks import TrainingCallback, TrainingEvent
from nextscale.errors import NextscaleError, NextscaleWarning
from nextscale.storage.files import one_line, write_text_atomic, writing
from nextscale.training.clock import RunClock
from nextscale.training.signals import Interrupted


def or_warn(
    path: Path, draw: Callable[[], Path | None], what: str = "picture", rest: str = "training goes on"
) -> Path | None:
    """The picture (or other ``what``) that ``draw`` writes to ``path``. If it cannot, a warning says why, and what the
    ``rest`` does."""
    try:
        return draw()
    except Interrupted:
        raise
    except Exception as error:  # a writer's bug must not cost a model
        reason = one_line(error) if isinstance(error, NextscaleError) else f"{type(error).__name__}: {one_line(error)}"
        warnings.warn(f"no {what} at {path} ({reason}); {rest}", NextscaleWarning, stacklevel=2)
        return None


class RunLog:
    """Metrics, progress and callbacks of one run folder; silent in all processes but the first.

    ``clock`` is the run's time budget, which the display counts down.
    """

    def __init__(self, folder: Path, clock: RunClock | None = None) -> None:
        self.folder = folder
        self.clock = clock or RunClock(folder, None)
        self.callbacks: list[TrainingCallback] = []
        self.path = folder / "metrics.jsonl"
        self.main = distributed.is_main()
        self.console = Console(stderr=True, quiet=not self.main)
        self.writer: Any = None

    def open(self, callbacks: list[TrainingCallback], tensorboard: bool) -> None:
        """Call this before training starts.

        Raises:
            NextscaleError: TensorBoard is requested but not installed.
        """
        self.callbacks = callbacks
        if tensorboard and self.main:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise NextscaleError("training.tensorboard needs TensorBoard: pip install 'nextscale[track]'") from None
            self.writer = SummaryWriter(str(self.folder / "tensorboard"))

    def write(self, stage: str, step: int, metrics: dict[str, float], kind: str) -> None:
        """Append one line ``{"stage": ..., "step": ..., "kind": "train" | "validation", ...}``."""
        if not self.main:
            return
        # JSON has no infinity (the gradient norm is infinite when fp16 overflows).
        values = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        line = json.dumps({"stage": stage, "step": step, "kind": kind, **values}) + "\n"
        with writing(self.path), self.path.open("a") as file:
            file.write(line)
        if self.writer:
            for key, value in metrics.items():
                self.writer.add_scalar(f"{stage}/{kind}/{key}", value, step)

    def rewind(self, stage: str, step: int) -> None:
        """Remove the lines that a stage resuming after ``step`` will write again, and any broken line."""
        if not self.main or not self.path.exists():
            return
        kept = []
        for raw in self.path.read_bytes().splitlines():
            try:
                line = json.loads(text := raw.decode())
                keep = line["stage"] != stage or line["step"] <= step
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # the process was killed while it wrote this line, or the file is damaged
            if keep:
                kept.append(text + "\n")
        write_text_atomic(self.path, "".join(kept))

    def note(self, message: str) -> None:
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int, done: int, tokens_per_step: int) -> Iterator[StageDisplay]:
        """The display of a stage of ``total`` steps, of which ``done`` are already done."""
        with StageDisplay(self, name, total, done, tokens_per_step) as display:
            yield display
        if self.writer:
            self.writer.flush()


class StageDisplay:
    """The progress bar of one stage; if stderr is a pipe or a file, an occasional line instead."""

    QUIET_SECONDS = 20.0

    def __init__(self, log: RunLog, name: str, total: int, done: int, tokens_per_step: int) -> None:
        self.log, self.name, self.total = log, name, total
        self.tokens_per_step = tokens_per_step
        self.started, self.first_step = time.perf_counter(), done
        self.last_line = self.started
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            *([] if log.clock.budget else [TimeRemainingColumn()]),
            console=log.console,
            disable=not (log.main and log.console.is_terminal),
        )
        self.task = self.progress.add_task(self.name, total=self.total, completed=done, status="")

    def __enter__(self) -> StageDisplay:
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()

    def end_at(self, total: int, why: str) -> None:
        """The stage now has ``total`` steps."""
        self.total = total
        self.progress.update(self.task, total=total)
        self.log.note(f"{self.name}: {total} steps in all, {why}")

    def step(self, step: int, metrics: dict[str, float], waited: float = 0.0) -> None:
        """``waited``: seconds of this run that the stage has spent waiting for data."""
        elapsed = time.perf_counter() - self.started
        tokens = self.tokens_per_step * (step - self.first_step) / max(elapsed, 1e-9)
        share = waited / max(elapsed, 1e-9)
        speeds = {"tokens_per_second": round(tokens, 1), "waiting_for_data": round(share, 4)}
        self.log.write(self.name, step, {**metrics, **speeds}, "train")
        status = f"loss {metrics['loss']:.4f}  {tokens:,.0f} tokens/s  {share:.0%} waiting for data"
        if self.log.clock.budget:
            status += f"  {self._budget_left()}"
        self.progress.update(self.task, completed=step, status=status)
        now = time.perf_counter()
        if self.progress.disable and (now - self.last_line > self.QUIET_SECONDS or step == self.total):
            left = elapsed / max(1, step - self.first_step) * (self.total - step)
            more = "" if self.log.clock.budget else f"  {left:,.0f} s left"
            self.log.note(f"{self.name} {step}/{self.total}  {status}{more}")
            self.last_line = now
        self._call("on_step", step, metrics, None)

    def _budget_left(self) -> str:
        left, budget = max(0, round(self.log.clock.left())), (self.log.clock.budget or 0) / 60
        return f"{left // 60}:{left % 60:02d} of {budget:g} min left"

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        self.log.write(self.name, step, metrics, "validation")
        scalars = [f"{key} {value:.4f}" for key, value in metrics.items() if "/" not in key]
        self.log.note(f"{self.name} {step}/{self.total}  validation: {'  '.join(scalars)}")

    def samples(self, step: int, path: Path | None) -> None:
        if path is not None:
            self._call("on_samples", step, None, path)

    def checkpoint(self, step: int, path: Path | None) -> None:
        if path is not None:
            self.log.clock.save()
            self._call("on_checkpoint", step, None, path)

    def _call(self, hook: str, step: int, metrics: dict[str, float] | None, path: Path | None) -> None:
        if self.log.main:
            for callback in self.log.callbacks:
                getattr(callback, hook)(TrainingEvent(self.name, step, metrics, path))
