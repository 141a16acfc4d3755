"""Training events that plugins can listen to. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingEvent:
    """Something that happened in training.

    Attributes:
        stage: ``tokenizer`` or ``transformer``.
        step: optimizer steps taken so far in this stage.
        metrics: named values of this step or validation; None if the event has none.
        path: the checkpoint or the samples that were written; None if nothing was written.
    """

    stage: str
    step: int
    metrics: dict[str, float] | None = None
    path: Path | None = None


class TrainingCallback:
    """Subclass it and override what you need; the defaults do nothing.

    In a distributed run, only the first process calls it. An exception in a callback stops training, just as one in
    the training code would.
    """

    def on_step(self, event: TrainingEvent) -> None:
        """An optimizer step ended and was logged; ``event.metrics`` holds the logged values."""

    def on_checkpoint(self, event: TrainingEvent) -> None:
        """A checkpoint was saved at ``event.path``."""

    def on_samples(self, event: TrainingEvent) -> None:
        """Samples were drawn and written to ``event.path``."""
