"""What one optimizer minimises: a module whose forward is the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from torch import Tensor, nn

from nextscale.data import Batch
from nextscale.randomness import Draws

ModelT = TypeVar("ModelT", bound=nn.Module)


class Objective(nn.Module, ABC, Generic[ModelT]):
    """A loss and the module it trains. Its forward is what DistributedDataParallel wraps.

    ``model`` is the module that is optimised, averaged (EMA) and saved. Anything else the loss needs (a frozen
    tokenizer, an opponent) is kept out of the module tree, so that it is neither trained nor saved here. Several
    objectives may alternate on the same batch (a tokenizer and its discriminator).
    """

    name: str
    model: ModelT
    lr: float | None = None
    """Peak learning rate; None takes the stage's."""
    complete_from: int = 0
    """The step from which the whole loss is at work. Weights from before are not kept as the best: they had less to pay
    for."""

    @abstractmethod
    def forward(self, batch: Batch, step: int, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss (a scalar) and named scalars to log, all computed over this process's share of the batch.

        All randomness comes from ``draws``, which gives a sample the same numbers for any number of processes.
        """

    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Validation scalars (means over the batch) of ``model``, which is ``self.model`` or its moving average.

        The scalar ``loss`` decides which weights are kept. The objective of an opponent returns no scalars.
        """
        return {}

    def after_step(self, step: int, draws: Draws) -> None:
        """Called after each optimizer step, on every process."""
