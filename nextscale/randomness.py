"""Randomness as a function of (seed, step, sample): independent of process count, batch split and resumption.

Nothing here has state, so a checkpoint need not store random-number state, and a resumed run repeats exactly.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nextscale.device import to_device


def mixed_seed(*parts: int) -> int:
    """One 63-bit seed from several integers, well mixed (numpy's SeedSequence)."""
    return int(np.random.SeedSequence([p & 0xFFFFFFFF for p in parts]).generate_state(1, np.uint64)[0] >> 1)


def sample_seeds(seed: int, positions: np.ndarray) -> np.ndarray:
    """B uint64: one seed per position in the training stream (splitmix64 of seed and position)."""
    with np.errstate(over="ignore"):
        z = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(mixed_seed(seed))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


class Draws:
    """Random numbers of one training step.

    Each draw is made for the whole global batch and cut to this process's rows, so that two processes together see
    exactly what a single one would see. The numbers are drawn on the CPU, so that every device sees the same ones.

    Args:
        seed, step: determine the numbers.
        rows: the rows of the global batch that this process (or micro-batch) holds.
        global_batch: number of samples in the global batch.
    """

    def __init__(self, seed: int, step: int, rows: slice, global_batch: int, device: torch.device | str = "cpu"):
        self.rows, self.global_batch, self.device = rows, global_batch, device
        self.generator = torch.Generator().manual_seed(mixed_seed(seed, step))

    def uniform(self, *shape: int) -> Tensor:
        """B *shape, in [0, 1)."""
        whole = torch.rand(self.global_batch, *shape, generator=self.generator)
        return to_device(whole[self.rows], self.device)

    def integers(self, high: int, *shape: int) -> Tensor:
        """B *shape, in [0, high)."""
        whole = torch.randint(high, (self.global_batch, *shape), generator=self.generator)
        return to_device(whole[self.rows], self.device)

    def seeds(self) -> list[int]:
        """One integer in [0, 2^31 - 1) for each of the B samples, as seeds of generators. They never leave the host."""
        return torch.randint(2**31 - 1, (self.global_batch,), generator=self.generator)[self.rows].tolist()

    def shared(self) -> torch.Generator:
        """A generator that is the same on every process, for choices made once for the whole batch."""
        return self.generator
