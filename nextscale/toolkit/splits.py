"""Holding out a share of a split, stratified by class, and drawing random rows from it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nextscale.randomness import sample_seeds


def hold_out(labels: np.ndarray | None, count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows kept and rows held out, each in ascending order; determined by (labels, count, share, seed).

    ``round(share * count)`` rows are held out (at least one, unless ``share`` is 0). Every class gives its share,
    rounded by largest remainder, so that classes too small to give a whole row take turns. A class keeps at least one
    row; if classes are that small, fewer rows are held out.
    """
    if labels is None:
        labels = np.zeros(count, np.int64)
    wanted = max(1, round(share * count)) if share > 0 else 0
    sizes = np.bincount(labels)
    exact = sizes * (wanted / max(count, 1))
    limit = np.maximum(sizes - 1, 0)
    taken = np.minimum(np.floor(exact).astype(np.int64), limit)
    # Ties between remainders are broken by the seed, not by the order of classes.
    order = np.lexsort((sample_seeds(seed, np.arange(len(sizes))), np.floor(exact) - exact))
    order = order[taken[order] < limit[order]]
    taken[order[: wanted - int(taken.sum())]] += 1

    shuffled = np.argsort(sample_seeds(seed, np.arange(count)), kind="stable")
    shuffled = shuffled[np.argsort(labels[shuffled], kind="stable")]  # by class, shuffled within
    starts = np.cumsum(sizes) - sizes
    position_in_class = np.arange(count) - np.repeat(starts, sizes)
    held = np.zeros(count, bool)
    held[shuffled[position_in_class < np.repeat(taken, sizes)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def some_rows(length: int, count: int, seed: int) -> np.ndarray:
    """``count`` random numbers from 0 to length - 1 (all of them if there are no more), in ascending order."""
    return np.sort(np.argsort(sample_seeds(seed, np.arange(length)))[:count])


def split_rows(labels: np.ndarray | None, count: int, shares: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """Rows of each split: ``shares`` are held out one after another (``hold_out``), and the rest is ``train``."""
    rows, parts = np.arange(count), {}
    for name, share in shares.items():
        kept, held = hold_out(None if labels is None else labels[rows], len(rows), share, seed)
        parts[name], rows = rows[held], rows[kept]
    return {**parts, "train": rows}
