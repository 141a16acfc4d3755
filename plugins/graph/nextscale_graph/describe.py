"""From graphs to tokens: the result of ``coarsen``, scale by scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from nextscale.plugin import Schedule, TokenPyramid
from nextscale_graph.coarsen import Coarsening, coarsen
from nextscale_graph.graphs import GraphBatch
from nextscale_graph.scales import Scales
from nextscale_graph.structure import HEADS

Tokens = list[list[int]]
"""The tokens of one graph, one list per scale."""


def describe_graph(
    size: int,
    edges: np.ndarray,
    scales: Scales,
    method: Coarsening,
    ratio: float,
    rng: np.random.Generator,
    shuffle: bool = False,
) -> tuple[Tokens, np.ndarray]:
    """The tokens of each scale of one graph, and its nodes in decoding order. ``shuffle``: nodes that split come in a
    random order, not by number."""
    roots, levels, order = coarsen(size, edges, method, ratio, rng)
    none: Tokens = [[] for _ in scales.attributes]
    tokens = [[size], [roots]]
    for level in levels:
        masses = [level.masses if roots == 1 else [0] * len(level.masses)] if scales.masses else []
        splits = rng.permutation(level.splits).tolist() if shuffle else level.splits
        tokens += [[len(splits)], splits, *masses, level.patterns, *none]
    return tokens, order


def describe_attributes(
    samples: GraphBatch,
    nodes: Sequence[np.ndarray],
    edges: Sequence[np.ndarray],
    described: list[Tokens],
    orders: Sequence[np.ndarray],
    scales: Scales,
) -> None:
    """Write the tokens of attributes into the last scales of each graph, in the order of the decoded graph.

    ``nodes`` and ``edges`` are the tokens of each attribute, N and E.
    """
    node, edge = 0, 0
    for i, (tokens, order) in enumerate(zip(described, orders, strict=True)):
        size, count = int(samples.sizes[i]), int(samples.edge_counts[i])
        ends = samples.edges[:, edge : edge + count].cpu().numpy()
        if len(tokens) == len(HEADS):  # nothing to grow
            tokens += [[] for _ in scales.cycle]
        ends = np.sort(np.argsort(order)[ends], 0)
        sort = np.argsort(ends[0] * size + ends[1])
        own = [each[node : node + size][order].tolist() for each in nodes]
        own += [each[edge : edge + count][sort].tolist() for each in edges]
        tokens[-len(own) :] = own
        node, edge = node + size, edge + count


def pack(described: list[Tokens], device: torch.device) -> TokenPyramid:
    """One padded pyramid of all graphs."""
    num_scales = max(map(len, described))
    parts, masks = [], []
    for k in range(num_scales):
        rows = [tokens[k] if k < len(tokens) else [] for tokens in described]
        length = max(1, *map(len, rows))
        parts.append(torch.tensor([row + [0] * (length - len(row)) for row in rows]))
        masks.append(torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows]))
    schedule = Schedule.of([(part.shape[1],) for part in parts])
    mask = torch.cat(masks, 1)
    pyramid = TokenPyramid.pack(parts, schedule, None if bool(mask.all()) else mask)
    return pyramid.to(device)
