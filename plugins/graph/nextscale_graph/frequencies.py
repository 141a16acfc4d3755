"""How often the numbers that a graph begins with occur in the training data: nodes and components."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

UNSEEN = 1e-9
"""How often a number counts as seen that never was: hardly drawn, and no infinite loss."""


def size_logits(sizes: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
    """V: logarithms of how often each number of nodes occurs; ``sizes`` holds pairs of size and count."""
    counts = torch.full((vocabulary,), UNSEEN)
    for size, count in sizes:
        counts[size] = count
    return counts.log()


def root_logits(components: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
    """V V: of how often each number of components occurs among graphs of a size; of sizes never seen, among all."""
    total = torch.zeros(vocabulary)
    counts = torch.zeros(vocabulary, vocabulary)
    for size, roots, count in components:
        counts[size, roots] += count
        total[roots] += count
    seen = counts.sum(1) > 0
    counts[~seen] = total
    return counts.clamp_min(UNSEEN).log()
