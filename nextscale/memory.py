"""What the C library does with the memory of freed tensors (glibc, on Linux; elsewhere nothing is done)."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Of malloc.h, with the defaults that mallopt(3) gives.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 * 1024, 65536


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within the block, glibc reuses the memory of freed tensors instead of giving it back.

    Otherwise it returns every large block to the kernel and gets it back page by page, zeroed, at every step: 5% of
    the time of a training step on a CPU.
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
    """Let glibc give tensors of 16 MiB and more back to the system once they are freed.

    By itself it learns to keep tensors of up to 32 MiB, in holes that a sampler's growing scales leave unused: a tenth
    of its memory. What one sample takes is smaller, and is kept.
    """
    mallopt = _glibc_function("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**24)


def release_freed_memory() -> None:
    """Give what glibc holds of freed tensors back to the system."""
    trim = _glibc_function("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc_function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
