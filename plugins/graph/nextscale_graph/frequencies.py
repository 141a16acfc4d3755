"""Frequencies in the training data of the two numbers that a graph begins with: nodes and components."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

UNSEEN = 1e-9
"""The count of a number that never occurs: it is hardly ever drawn, and its loss is finite."""


def size_logits(sizes: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
    """V: the log of how often each number of nodes occurs; ``sizes`` holds pairs of size and count."""
    counts = torch.full((vocabulary,), UNSEEN)
    for size, count in sizes:
        counts[size] = count
    return counts.log()


def root_logits(components: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
    """V V: the log of how often each number of components occurs among graphs of each size. Sizes never seen get the
    counts over all sizes."""
    total = torch.zeros(vocabulary)
    counts = torch.zeros(vocabulary, vocabulary)
    for size, roots, count in components:
        counts[size, roots] += count
        total[roots] += count
    seen = counts.sum(1) > 0
    counts[~seen] = total
    return counts.clamp_min(UNSEEN).log()
