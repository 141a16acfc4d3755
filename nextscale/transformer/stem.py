"""The default stem, for grids: a linear layer on features."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.stem import Stem


class LinearStem(nn.Linear, Stem):
    """Embeds ``ScaleInput.features``; start tokens, about which nothing is known, are zero.

    The transformer adds its embedding of revealed tokens, and its own head computes the logits.
    """

    complete = False

    def forward(self, inputs: ScaleInput, revealed: tuple[Tensor, Tensor] | None) -> tuple[Tensor, None]:  # type: ignore[override]
        if inputs.features is None:
            return self.weight.new_zeros(inputs.num_samples, inputs.length, self.out_features), None
        x_BLD = super().forward(inputs.features[:, inputs.start :])
        return F.pad(x_BLD, (0, 0, inputs.start, 0)) if inputs.start else x_BLD, None

    def logits(self, hidden_BLD: Tensor, memory: Any) -> Tensor:
        raise NotImplementedError("the transformer's own head computes the logits of a linear stem")
