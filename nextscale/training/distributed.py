"""The few questions that training asks of torch.distributed; everything works in a single process too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group that torchrun set up (nccl on CUDA, gloo elsewhere); nothing where there is none."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def total(tensor: Tensor) -> Tensor:
    """The sum over processes (in place)."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def pick_device(name: str) -> torch.device:
    """``auto`` takes this process's own GPU where there is one.

    Raises:
        RuntimeError: from torch, for a name that it does not know.
    """
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
