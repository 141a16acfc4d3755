"""What plugins may listen to during training. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingEvent:
    """Something that happened in training.

    Attributes:
        stage: ``tokenizer`` or ``transformer``.
        step: optimizer steps taken so far in this stage.
        metrics: named values of this step or validation; None where the event has none.
        path: the checkpoint or the samples that were written; None where nothing was.
    """

    stage: str
    step: int
    metrics: dict[str, float] | None = None
    path: Path | None = None


class TrainingCallback:
    """Subclass it and override what you need; the defaults do nothing.

    Only the first process of a distributed run calls back. An exception stops training, as one in the
    training code itself would.
    """

    def on_step(self, event: TrainingEvent) -> None:
        """An optimizer step ended and was logged; ``event.metrics`` holds what was logged."""

    def on_checkpoint(self, event: TrainingEvent) -> None:
        """A checkpoint was saved at ``event.path``."""

    def on_samples(self, event: TrainingEvent) -> None:
        """Samples were drawn and written to ``event.path``."""
