"""The few torch.distributed operations that training needs; they all work in a single process too."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# The other processes wait while the first one draws samples, and a shard of tokens may take long on a CPU.
TIMEOUT = timedelta(hours=12)
_kept: list[Any] = []
"""Every group that was joined, so that none is destroyed while an interrupted training goes out of scope. The
destructor of gloo's groups holds the GIL, and waits for a thread that takes it to release the tensors of the last
call."""


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group that torchrun set up (nccl on CUDA, gloo elsewhere); do nothing if there is none."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    _kept.append(dist.group.WORLD)
    try:
        yield
    finally:
        time.sleep(0.1)  # the same for groups within the world: their threads come to rest
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
    """The sum of ``tensor`` over processes (in place)."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather(tensor: Tensor) -> list[Tensor]:
    """The tensors of all processes, ordered by rank; they must have the same shape."""
    if world_size() == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return parts


def is_spread(tensor: Tensor) -> bool:
    """Whether each process holds only a part of a tensor (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is spread over processes (a DTensor), gathered in each of them; any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process; all of one that is not spread."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def spread_like(tensor: Tensor, other: Tensor) -> Tensor:
    """This process's part of ``tensor``, which every process holds, if ``other`` is spread; ``tensor`` if it is not."""
    if not is_spread(other):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    on = other.to_local().device
    return distribute_tensor(tensor.to(on), other.device_mesh, other.placements, src_data_rank=None)


def communication_device() -> torch.device:
    """Where tensors must lie that processes exchange: nccl takes those of the GPU alone."""
    if world_size() > 1 and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def agree(mine: bool) -> bool:
    """What the first process says; the others may see a shared file system with a delay."""
    return bool(total(torch.tensor(float(mine and is_main()), device=communication_device())))


def together(function: Callable[[], Any]) -> None:
    """Call ``function`` in every process. If it fails in any, the first of these raises; the others exit silently."""
    problem: BaseException | None = None
    try:
        function()
    except BaseException as error:  # raised only after the others know, or they would wait for ever
        problem = error
    if world_size() > 1:
        failed = torch.zeros(world_size(), device=communication_device())
        failed[rank()] = float(problem is not None)
        failed = total(failed)
        if failed.any() and int(failed.argmax()) != rank():
            sys.exit(getattr(problem, "code", None) or 1)
    if problem is not None:
        raise problem


def on_main(function: Callable[[], Any]) -> None:
    """Call ``function`` on the first process while the others wait. If it fails, the others exit silently."""
    together(function if is_main() else lambda: None)
