"""The order in which training visits stored rows, as a function of (seed, position).

There is no state to save: a run that stopped after n samples continues at position n, on any number of processes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from nextscale.randomness import mixed_seed, sample_seeds

# What a permutation shuffles. It enters the seed, so that permutations of different things differ.
_SHARDS, _ROWS, _BATCHES = 0, 1, 2


class StreamOrder:
    """An infinite stream of row numbers, epoch after epoch; every epoch visits every row exactly once.

    Without shards, an epoch is one permutation of all rows. With shards, it permutes the shards, takes
    ``shards_per_buffer`` of them at a time and permutes their rows. Neighbours in the stream then come from few
    shards, and each shard is read once per epoch.

    With ``lengths``, the rows of a batch have about the same length, so that little is padded. The order of the
    batches in a buffer is random.

    The permutations sort splitmix64 hashes. Unlike those of a random generator, they are the same in every version
    of numpy.

    Args:
        num_rows: number of stored rows.
        seed: seed of the order.
        shard_rows: rows per shard (the last may hold fewer); None for no shards.
        shards_per_buffer: number of shards whose rows are shuffled together.
        lengths: the length of each row, if they differ.
        batch_size: rows per batch; batches begin at multiples of it.

    Raises:
        ValueError: an argument is not positive.
    """

    def __init__(
        self,
        num_rows: int,
        seed: int,
        shard_rows: int | None = None,
        shards_per_buffer: int = 8,
        lengths: np.ndarray | None = None,
        batch_size: int = 1,
    ) -> None:
        if min(num_rows, num_rows if shard_rows is None else shard_rows, shards_per_buffer) < 1:
            raise ValueError("num_rows, shard_rows and shards_per_buffer must be positive")
        self.num_rows, self.seed = num_rows, seed
        # Without shards, all rows are one shard and so one buffer.
        self.shard_rows = min(shard_rows or num_rows, num_rows)
        self.shards_per_buffer = shards_per_buffer
        self.lengths, self.batch_size = lengths, batch_size
        # A batch that straddles a border needs two epochs or two buffers.
        self._plan_of = lru_cache(2)(self._plan)
        self._buffer_of = lru_cache(2)(self._buffer)

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """B row numbers (int64) for B positions in the stream (int64, from 0)."""
        positions = np.asarray(positions, np.int64)
        epochs, places = np.divmod(positions, self.num_rows)
        rows = np.empty_like(positions)
        for epoch in _distinct(epochs):
            starts = self._plan_of(epoch)[0]
            here = np.flatnonzero(epochs == epoch)
            buffers = np.searchsorted(starts, places[here], side="right") - 1
            for buffer in _distinct(buffers):
                inside = here[buffers == buffer]
                rows[inside] = self._buffer_of(epoch, buffer)[places[inside] - starts[buffer]]
        return rows

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each buffer of the epoch begins, and the epoch's permutation of shards."""
        num_shards = -(-self.num_rows // self.shard_rows)
        shards = self._permutation(num_shards, _SHARDS, epoch)
        sizes = np.minimum(self.shard_rows, self.num_rows - shards * self.shard_rows)
        first = np.arange(0, num_shards, self.shards_per_buffer)
        return (np.cumsum(sizes) - sizes)[first], shards

    def _buffer(self, epoch: int, buffer: int) -> np.ndarray:
        """The rows of one shuffle buffer, shuffled."""
        chosen = self._plan_of(epoch)[1][buffer * self.shards_per_buffer : (buffer + 1) * self.shards_per_buffer]
        spans = [
            np.arange(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.num_rows)) for shard in chosen
        ]
        rows = np.concatenate(spans)
        rows = rows[self._permutation(len(rows), _ROWS, epoch, buffer)]
        return rows if self.lengths is None else self._batched(rows, self.lengths[rows], epoch, buffer)

    def _batched(self, rows: np.ndarray, lengths: np.ndarray, epoch: int, buffer: int) -> np.ndarray:
        """``rows`` grouped into batches of about equal length, in random order.

        Rows before the first border between batches and after the last share their batch with another buffer. They
        stay where they are.
        """
        start = epoch * self.num_rows + int(self._plan_of(epoch)[0][buffer])
        first = min(-start % self.batch_size, len(rows))
        number = (len(rows) - first) // self.batch_size
        end = first + number * self.batch_size
        inside = rows[first:end][np.argsort(lengths[first:end], kind="stable")].reshape(number, self.batch_size)
        inside = inside[self._permutation(number, _BATCHES, epoch, buffer)]
        return np.concatenate([rows[:first], inside.flatten(), rows[end:]])

    def _permutation(self, length: int, *parts: int) -> np.ndarray:
        seed = mixed_seed(self.seed, self.seed >> 32, *parts)
        return np.argsort(sample_seeds(seed, np.arange(length)), kind="stable")


def _distinct(values: np.ndarray) -> list[int]:
    """The distinct values, ascending. A batch usually has one, and sorting takes longer than reading a row."""
    if values.size and (values == values[0]).all():
        return [int(values[0])]
    return np.unique(values).tolist()
