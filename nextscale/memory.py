"""How much to compute at once, and what the C library does with the memory of freed tensors (glibc on Linux)."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# From malloc.h; the defaults are those in mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 * 1024, 65536

CHUNK_BYTES = 2**29
"""About what a chunk of the size for CPUs takes."""


def chunk_size(on_cpu: int, device: torch.device) -> int:
    """How many places of a grid to compute at once: ``on_cpu`` on a CPU, and on a GPU as many more as fit into a
    quarter of the memory that is free."""
    if device.type != "cuda":
        return on_cpu
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + cached
    return on_cpu * max(1, free // 4 // CHUNK_BYTES)


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within the block, glibc reuses the memory of freed tensors instead of returning it to the system.

    By default it returns every large allocation to the kernel and gets it back page by page, zeroed, at every step.
    That takes 5% of the time of a training step on a CPU.
    """
    mallopt = _glibc_function("mallopt")
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
        mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)
        release_freed_memory()


def return_large_tensors() -> None:
    """Let glibc return tensors of 16 MiB and more to the system once they are freed.

    By default it learns to keep tensors of up to 32 MiB. Because the scales of a sampler grow, such memory stays behind
    as unused holes: a tenth of the sampler's memory. The tensors of a single sample are smaller and are still kept.
    """
    mallopt = _glibc_function("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**24)


def release_freed_memory() -> None:
    """Return the memory of freed tensors that glibc still holds to the system."""
    trim = _glibc_function("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc_function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
