"""How much memory this process, or the GPU, uses: now, at most since a reset, and how much is left."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

MIB = 2**20
STATUS, CLEAR, MEMINFO = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")


def memory_in_use(device: torch.device) -> int | None:
    """Bytes in use now: of the GPU's memory, or of this process; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _field(STATUS, "VmRSS")


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use since ``reset_peak``."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _field(STATUS, "VmHWM")


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux only
        CLEAR.write_text("5")


def free_memory(device: torch.device) -> int | None:
    """Bytes that could still be used; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _field(MEMINFO, "MemAvailable")


def _field(file: Path, name: str) -> int | None:
    with suppress(OSError):
        for line in file.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
