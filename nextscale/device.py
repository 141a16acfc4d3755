"""Choosing the device and the precision to compute in, and checking for a compiler."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from nextscale.errors import ConfigError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device (or, for a tensor, this machine) had too little memory left."""
    texts = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts)
    )


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Compute with ``number`` CPU threads; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_device(name: str) -> torch.device:
    """The device called ``name``. ``auto`` is this process's own GPU, or the CPU if there is none. ``cuda`` is this
    process's own GPU.

    Raises:
        ConfigError: torch does not know the device, or this machine does not have it.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name!r}; it should be auto, cpu, cuda, cuda:1 or similar") from None
    if device.type == "cpu":
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if accelerator and accelerator.type == device.type else 0
    if not count:
        raise ConfigError(f"device {name!r} is not available on this machine; auto picks one that is")
    if device.index is None:
        device = torch.device(device.type, local)
    if device.index >= count:
        raise ConfigError(f"device {str(device)!r} is not available: this machine has {count}, numbered from 0")
    return device


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor`` on ``device``. To a GPU it goes through pinned memory, so that the host waits neither for the copy nor
    for what was queued before it."""
    device = torch.device(device)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to, or None for fp32. ``auto`` is bf16 if it is faster on the device, else fp32."""
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def check_compiler(model: nn.Module) -> None:
    """Raise ConfigError if torch.compile would find no compiler for ``model``'s device."""
    if any(p.is_cuda for p in model.parameters()):
        return
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes seconds to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        message = "torch.compile needs a C++ compiler, and none was found: install g++, or set compile=false"
        raise ConfigError(message) from error


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Within the block, autocast is off. (The meta device, on which models are only measured, knows no autocast.)"""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)  # type: ignore[return-value]
