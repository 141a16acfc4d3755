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


def root_logits(components: Sequence[Sequence[int]], vocabulary: int) -> tuple[Tensor, Tensor]:
    """The log of how often each number of components occurs, and V row numbers: the row for each size.

    There is a row per size, and a last one of the counts over all sizes, which sizes never seen get. Numbers larger
    than the last column never occur. ``components`` holds triples of size, components and count.
    """
    sizes = sorted({size for size, *_ in components})
    counts = torch.zeros(len(sizes) + 1, max((roots for _, roots, _ in components), default=0) + 1)
    rows = torch.full((vocabulary,), len(sizes))
    place = {size: row for row, size in enumerate(sizes)}
    for size, roots, count in components:
        rows[size] = place[size]
        counts[place[size], roots] += count
        counts[-1, roots] += count
    return counts.clamp_min(UNSEEN).log(), rows
