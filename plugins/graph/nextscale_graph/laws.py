"""The laws of the numbers that a graph begins with, counted in the training data: nodes, components, edges."""

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


class EdgeLaw:
    """How many edges graphs of a size have.

    Graphs of the nearest size in the data stand for those of a size never seen, with as many edges a node beyond those
    of a forest: so trees of any size have one edge less than nodes.

    Args:
        rows: nodes, components, edges, and how often they occur together.
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.rows = torch.tensor(rows, dtype=torch.long).view(-1, 4)

    def counts(self, size: int, roots: int) -> dict[int, int]:
        """How often each number of edges occurs among graphs of ``size`` nodes in ``roots`` components."""
        nodes, components, edges, count = self.rows.unbind(1)
        apart = (nodes - size).abs()
        near = apart == apart.min()
        beyond = (edges - nodes + components)[near] * size / nodes[near]
        least, most = bounds(size, roots)
        found: dict[int, int] = {}
        for number, times in zip(
            (least + beyond.round().long()).clamp_max(most).tolist(), count[near].tolist(), strict=True
        ):
            found[number] = found.get(number, 0) + times
        return found

    def logits(self, sizes: Tensor, roots: Tensor, high: Tensor | None, vocabulary: int) -> Tensor:
        """B V: of the two digits to the base V in which the number is drawn: of the higher one, or given it, the
        lower."""
        counts = torch.full((len(sizes), vocabulary), UNSEEN)
        for row, (size, number) in enumerate(zip(sizes.tolist(), roots.tolist(), strict=True)):
            for edges, times in self.counts(size, number).items():
                first, second = divmod(edges, vocabulary)
                if high is None:
                    counts[row, first] += times
                elif int(high[row]) == first:
                    counts[row, second] += times
        return counts.log().to(sizes.device)


def bounds(size: int, roots: int) -> tuple[int, int]:
    """The fewest and the most edges of ``size`` nodes in ``roots`` components."""
    largest = size - roots + 1
    return size - roots, largest * (largest - 1) // 2
