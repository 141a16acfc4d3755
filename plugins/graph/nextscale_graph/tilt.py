"""How a condition changes the distribution of a number that is otherwise drawn by its frequency."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SEEN = -20.0
"""Numbers with logits above this occur in the training data (``frequencies.UNSEEN``)."""


class Tilt(nn.Module):
    """Adds a z + b z^2 to the logit of each number, where z is the number, standardised, and a and b follow from the
    condition: an exponential family around the frequencies, with two parameters however many numbers there are.

    Numbers beyond those of the training data count as the nearest of these.

    Args:
        width: D, of the hidden states.
        frequencies: V, or rows of V: logits of the numbers.
    """

    features: Tensor

    def __init__(self, width: int, frequencies: Tensor) -> None:
        super().__init__()
        self.coefficients = nn.Linear(width, 2)
        nn.init.zeros_(self.coefficients.weight)
        nn.init.zeros_(self.coefficients.bias)
        weights = frequencies.exp().view(-1, frequencies.shape[-1]).sum(0)
        numbers = torch.arange(len(weights), device=weights.device).float()
        share = weights / weights.sum()
        mean = (share * numbers).sum()
        deviation = (share * (numbers - mean).square()).sum().sqrt().clamp_min(1e-3)
        seen = weights.log() > SEEN
        low = torch.where(seen, numbers, torch.inf).min()
        high = torch.where(seen, numbers, -torch.inf).max()
        z = (numbers.clamp(low, high) - mean) / deviation
        self.register_buffer("features", torch.stack([z, z.square()]), persistent=False)

    def forward(self, hidden_BD: Tensor) -> Tensor:
        """B V."""
        return self.coefficients(hidden_BD).float() @ self.features
