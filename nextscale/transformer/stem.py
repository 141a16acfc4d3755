"""The default stem, for grids: a linear layer on features."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.stem import Stem


class LinearStem(nn.Linear, Stem):
    """Embeds ``ScaleInput.features``; start tokens, about which nothing is known, are zero.

    The transformer's own head computes the logits. Revealed tokens are embedded by the transformer or, with ``codes``
    (V C), here: the code vector of a known token is added to its features. So the same layer embeds what coarser scales
    and what known tokens of this scale say. ``codes`` are stored with the weights.
    """

    complete = False
    codes: Tensor | None

    def __init__(self, feature_dim: int, width: int, codes: Tensor | None = None) -> None:
        super().__init__(feature_dim, width)
        self.register_buffer("codes", None if codes is None else codes.detach().float().clone())

    def forward(self, inputs: ScaleInput, revealed: tuple[Tensor, Tensor] | None) -> tuple[Tensor, None]:  # type: ignore[override]
        if inputs.features is None:
            x_BLD = self.weight.new_zeros(inputs.num_samples, inputs.length, self.out_features)
        else:
            x_BLD = super().forward(inputs.features[:, inputs.start :])
            x_BLD = F.pad(x_BLD, (0, 0, inputs.start, 0)) if inputs.start else x_BLD
        if self.codes is not None and revealed is not None:
            tokens_BL, known_BL = revealed
            x_BLD = x_BLD + F.linear(F.embedding(tokens_BL, self.codes), self.weight) * known_BL[..., None]
        return x_BLD, None

    def logits(self, hidden_BLD: Tensor, memory: Any) -> Tensor:
        raise NotImplementedError("the transformer's own head computes the logits of a linear stem")
