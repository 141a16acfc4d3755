"""Where the nodes of a drawn graph lie. The same graph always gets the same layout."""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, shortest_path
from scipy.spatial.distance import cdist

PIVOTS = 50
"""Number of nodes from which distances are measured for the first layout."""
REFINED = 2500
"""Largest component whose layout is refined. The distances between all pairs of nodes are in memory, four times."""


def positions(size: int, edges: np.ndarray) -> np.ndarray:
    """N 2: positions of the nodes of a graph with these edges (2 E), such that distances on paper are close to those in
    the graph. Components lie side by side. Takes seconds for 2,000 nodes.

    Kamada and Kawai minimise the same stress, at a hundred times the cost for hundreds of nodes.
    """
    ones = np.ones(edges.shape[1], np.int8)
    adjacency = csr_array(coo_array((ones, tuple(edges)), (size, size)))
    number, member = connected_components(adjacency, directed=False)
    found = np.zeros((size, 2))
    if number == 1:
        return _connected(adjacency, size)
    order = np.argsort(member, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(member, minlength=number))[:-1])
    # Shelves of squares, large ones first, with an area proportional to the number of nodes.
    width, left, bottom, height = 1.2 * math.sqrt(size), 0.0, 0.0, 0.0
    for nodes in sorted(parts, key=len, reverse=True):
        side = math.sqrt(len(nodes))
        if left > 0 and left + side > width:
            left, bottom, height = 0.0, bottom + height, 0.0
        own = _connected(csr_array(adjacency[nodes][:, nodes]), len(nodes))
        extent = max(float(np.ptp(own, 0).max()), 1e-9)
        middle = (own.max(0) + own.min(0)) / 2
        found[nodes] = (own - middle) * (0.8 * side / extent) + [left + side / 2, bottom + side / 2]
        left, height = left + side, max(height, side)
    return found


def _connected(adjacency: csr_array, size: int) -> np.ndarray:
    """N 2: a layout by Pivot MDS (Brandes and Pich 2006), refined by stress majorization (Gansner and others 2004)."""
    if size < 3:
        return np.arange(2.0)[:size, None] * [1.0, 0.0]
    rng = np.random.default_rng(0)
    refined = size <= REFINED
    pivots = np.sort(rng.permutation(size)[:PIVOTS])
    sources = np.arange(size) if refined else pivots
    distances = np.asarray(shortest_path(adjacency, directed=False, unweighted=True, indices=sources))
    squares = np.square(distances[pivots] if refined else distances).T
    centred = squares - squares.mean(0) - squares.mean(1, keepdims=True) + squares.mean()
    axes = np.linalg.eigh(centred.T @ centred)[1][:, -2:]
    start = centred @ axes
    start *= math.sqrt(size) / max(float(np.abs(start).max()), 1e-9)
    start += 0.01 * rng.standard_normal(start.shape)  # nodes with the same distances to all pivots coincide
    return _majorize(distances, start) if refined else start


def _majorize(distances: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Reduce the sum over pairs of ((distance on paper - distance) / distance)^2."""
    size = len(start)
    inverse = 1 / (distances + np.eye(size)) - np.eye(size)
    weights = np.square(inverse)
    # Only differences matter, so the first node may stay at the origin, and the rest is determined.
    factor = cho_factor(np.diag(weights.sum(1)[1:]) - weights[1:, 1:])
    found = start - start[0]
    # Small graphs may take many rounds, and large ones begin close to their end.
    for _ in range(max(20, min(100, 20_000 // size))):
        pull = inverse / np.maximum(cdist(found, found), 1e-9)
        target = pull.sum(1, keepdims=True) * found - pull @ found
        found = np.concatenate([np.zeros((1, 2)), cho_solve(factor, target[1:])])
    return found


def ancestors(final: np.ndarray, lineage: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """M 2: each node of an earlier stage, at the mean of the nodes that it becomes.

    Args:
        final: N 2, positions of the final graph.
        lineage, earlier: N and M numbers (``GraphBatch.lineage``) of the final and of the earlier nodes. What a node
            becomes lies next to each other in the final order, from the node that kept its number.
    """
    place = {number: i for i, number in enumerate(lineage.tolist())}
    begins = np.array([place[number] for number in earlier.tolist()])
    counts = np.diff([*begins, len(final)])
    return np.add.reduceat(final, begins, axis=0) / counts[:, None]
