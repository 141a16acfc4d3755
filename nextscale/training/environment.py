"""What a run records of where it ran, and the seeds of weights."""

from __future__ import annotations

import ctypes
import platform
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from nextscale.training import distributed

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


def seed_everything(seed: int) -> None:
    """Seed what initialises weights; training itself draws from ``Draws`` alone."""
    torch.manual_seed(seed)


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors instead of giving it back (nothing on other systems).

    It would return every large block to the kernel and get it again page by page, zeroed, at every step: 5% of a
    training step's time on a CPU.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def return_large_tensors() -> None:
    """Let glibc give tensors of 16 MiB and more back to the system once they are freed (nothing on other systems).

    By itself it learns to keep those of up to 32 MiB, in holes that a sampler's growing scales leave unused: a tenth
    of its memory. What one sample takes is smaller, and kept.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**24)


def release_freed_memory() -> None:
    """Give what glibc holds of freed tensors back to the system (nothing on other systems)."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(function: str) -> Any:
    return getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None


def describe_environment() -> dict[str, Any]:
    return {
        "nextscale": version("nextscale"),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processes": distributed.world_size(),
        "command": sys.argv,
    }
