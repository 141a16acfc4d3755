from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.training.order import StreamOrder

SEEDS = st.integers(0, 2**63 - 1)


@st.composite
def orders(draw: st.DrawFn) -> StreamOrder:
    num_rows = draw(st.integers(1, 200))
    shard_rows = draw(st.none() | st.integers(1, 60))
    lengths = np.random.default_rng(num_rows).integers(1, 9, num_rows) if draw(st.booleans()) else None
    return StreamOrder(num_rows, draw(SEEDS), shard_rows, draw(st.integers(1, 5)), lengths, draw(st.integers(1, 20)))


@given(orders(), st.integers(0, 10**9))
def test_every_epoch_visits_every_row_once(order: StreamOrder, epoch: int) -> None:
    positions = epoch * order.num_rows + np.arange(order.num_rows)
    assert np.array_equal(np.sort(order.rows(positions)), np.arange(order.num_rows))


@given(orders(), st.data())
def test_is_a_function_of_position_alone(order: StreamOrder, data: st.DataObject) -> None:
    """Any batching, any order and a fresh object give the same rows."""
    start = data.draw(st.integers(0, 3 * order.num_rows))
    positions = start + np.arange(2 * order.num_rows)
    whole = order.rows(positions)
    size = data.draw(st.integers(1, len(positions)))
    batches = [order.rows(positions[i : i + size]) for i in range(0, len(positions), size)]
    assert np.array_equal(np.concatenate(batches), whole)
    shuffled = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(len(positions))
    fresh = StreamOrder(
        order.num_rows, order.seed, order.shard_rows, order.shards_per_buffer, order.lengths, order.batch_size
    )
    assert np.array_equal(fresh.rows(positions[shuffled]), whole[shuffled])


@given(orders())
def test_neighbours_come_from_one_buffer_of_shards(order: StreamOrder) -> None:
    """If an epoch is cut where its buffers end, each piece consists of whole shards, and of few."""
    rows = order.rows(np.arange(order.num_rows))
    shards = rows // order.shard_rows
    done: set[int] = set()
    start = 0
    while start < len(rows):
        piece = _whole_shards(shards[start:], order)
        assert len(piece) <= order.shards_per_buffer
        assert not piece & done
        done |= piece
        start += sum(min(order.shard_rows, order.num_rows - s * order.shard_rows) for s in piece)


def _whole_shards(shards: np.ndarray, order: StreamOrder) -> set[int]:
    """The shards of the shortest prefix that holds shards_per_buffer shards in full, or of all rows."""
    seen: dict[int, int] = {}
    for shard in shards.tolist():
        seen[shard] = seen.get(shard, 0) + 1
        full = [s for s, n in seen.items() if n == min(order.shard_rows, order.num_rows - s * order.shard_rows)]
        if len(full) == len(seen) == order.shards_per_buffer:
            break
    return set(seen)


def test_epochs_seeds_and_shards_differ() -> None:
    order = StreamOrder(1000, seed=1)
    first, second = order.rows(np.arange(2000)).reshape(2, 1000)
    other = StreamOrder(1000, seed=2).rows(np.arange(1000))
    wide = StreamOrder(1000, seed=1 + 2**40).rows(np.arange(1000))
    for rows in (second, other, wide, np.arange(1000)):
        assert np.mean(first == rows) < 0.02


@pytest.mark.parametrize("shard_rows", [None, 64])
def test_positions_are_uniform(shard_rows: int | None) -> None:
    """Over many epochs, every row is equally often in each tenth of an epoch (chi-squared, 4 sigma)."""
    num_rows, epochs = 640, 300
    order = StreamOrder(num_rows, 3, shard_rows, shards_per_buffer=2)
    rows = order.rows(np.arange(epochs * num_rows)).reshape(epochs, 10, num_rows // 10)
    counts = np.stack([np.bincount(rows[:, tenth].ravel(), minlength=num_rows) for tenth in range(10)])
    # Rows of a shard move together, so the statistic of each row's ten counts is computed, and its mean is tested.
    expected = epochs / 10
    statistic = ((counts - expected) ** 2 / expected).sum(0)
    shards = 1 if shard_rows is None else num_rows // shard_rows
    spread = np.sqrt(2 * 9 / (num_rows if shards == 1 else shards))
    assert abs(statistic.mean() - 9) < 4 * spread


def test_the_order_is_pinned() -> None:
    """A run resumed under a newer version continues in the same order."""
    assert StreamOrder(10, 0).rows(np.arange(10)).tolist() == PINNED
    assert StreamOrder(10, 7, 3, 2).rows(np.arange(10, 20)).tolist() == PINNED_SHARDS


def test_a_step_costs_microseconds() -> None:
    order = StreamOrder(200_000, 0, 2048)
    order.rows(np.arange(64))
    start = time.perf_counter()
    for step in range(200):
        order.rows(np.arange(step * 64, step * 64 + 64))
    assert (time.perf_counter() - start) / 200 < 1e-3


def test_refuses_nonsense() -> None:
    for bad in ({"num_rows": 0}, {"num_rows": 3, "shard_rows": 0}, {"num_rows": 3, "shards_per_buffer": 0}):
        with pytest.raises(ValueError, match="positive"):
            StreamOrder(seed=0, **bad)


PINNED = [5, 6, 2, 0, 9, 8, 3, 7, 4, 1]
PINNED_SHARDS = [5, 7, 3, 8, 4, 6, 2, 9, 0, 1]


@given(SEEDS, st.integers(0, 5), st.integers(2, 16))
def test_batches_hold_rows_of_similar_length(seed: int, epoch: int, size: int) -> None:
    """This holds for all batches except the two that an epoch shares with its neighbours. Long and short batches come
    in random order."""
    lengths = np.random.default_rng(seed % 1000).permutation(400)
    order = StreamOrder(400, seed, lengths=lengths, batch_size=size)
    first, last = -(-epoch * 400 // size), (epoch + 1) * 400 // size
    batches = [lengths[order.rows(np.arange(b * size, (b + 1) * size))] for b in range(first, last)]
    assert all(np.ptp(batch) < 3 * size for batch in batches)
    means = np.array([batch.mean() for batch in batches])
    assert not (np.diff(means) > 0).all() and not (np.diff(means) < 0).all()
