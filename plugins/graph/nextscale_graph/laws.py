"""The laws of the numbers that a graph begins with, counted in the training data: nodes, components, edges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", int, Tensor)

UNSEEN = 1e-9
"""How often a number counts as seen that never was: hardly drawn, and no infinite loss."""
ENOUGH = 10
"""Graphs that a law of edges is made of, if there are so many: of the size in question, and of the nearest ones."""


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
    """How many edges a graph has in the end.

    Graphs of other sizes stand for those of a size that is rare or never seen, with as many edges a node beyond those
    of a forest: so trees of any size have one edge less than nodes. What has begun already goes on as the data do.

    Args:
        rows: nodes, components, edges, and how often they occur together.

    Attributes:
        rate: edges a node beyond those of a forest.
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.rows = sorted(map(tuple, rows))
        splits = sum(times * (nodes - components) for nodes, components, _, times in self.rows)
        self.rate = sum(times * edges for _, _, edges, times in self.rows) / max(1, splits) - 1

    def counts(self, size: int, roots: int, nodes: int, edges: int) -> Counter[int]:
        """How often each number of edges occurs among graphs of ``size`` nodes in ``roots`` components, of which
        ``nodes`` and ``edges`` are there (``roots`` and none, before anything is)."""
        apart = min(abs(row[1] - roots) for row in self.rows)
        rows = sorted((abs(row[0] - size), row) for row in self.rows if abs(row[1] - roots) == apart)
        least, most = edges + size - nodes, most_edges(size, roots)
        to_come = (size - nodes) / max(1, size - roots)
        found: Counter[int] = Counter()
        last = 0
        for distance, (other, components, number, times) in rows:
            if found.total() >= ENOUGH and distance > last:
                break
            beyond = (number - other + components) * size / other
            found[min(least + round(beyond * to_come), max(least, most))] += times
            last = distance
        return found

    def logits(self, cases: Tensor, vocabulary: int) -> Tensor:
        """B V: of the two digits to the base V that the number is drawn in.

        Args:
            cases: B 5, the arguments of ``counts``, and the higher digit, or -1 where it is to be drawn.
        """
        counts = torch.full((len(cases), vocabulary), UNSEEN)
        for row, (*case, high) in zip(counts, cases.tolist(), strict=True):
            for edges, times in self.counts(*case).items():
                first, second = divmod(edges, vocabulary)
                if high < 0:
                    row[first] += times
                elif high == first:
                    row[second] += times
        return counts.log().to(cases.device)


def most_edges(size: Number, roots: Number) -> Number:
    """The most edges that ``size`` nodes in ``roots`` components can have."""
    largest = size - roots + 1
    return largest * (largest - 1) // 2
