"""Inference in half precision: the dtypes in which large weights are stored and multiplied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nextscale.conditioning import Conditioner
from nextscale.device import autocast_dtype
from nextscale.errors import ConfigError, unknown
from nextscale.memory import release_freed_memory, return_large_tensors
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def check_precision(precision: str) -> None:
    """Raise ConfigError for an unknown precision."""
    if precision not in PRECISIONS:
        raise ConfigError(unknown("precision", precision, PRECISIONS))


def prepare(tokenizer: MultiscaleTokenizer, transformer: ScaleTransformer, precision: str = "fp32") -> None:
    """Prepare loaded models for inference, in place.

    Half precision applies to the matrices and convolutions of the transformer and of the tokenizer's decoder. Values
    that add up from scale to scale (the residual stream, f_hat, logits) stay in float32. So does the encoder, and the
    tokens of a sample therefore do not change. Afterwards the state dicts of the models differ from those loaded.

    Raises:
        ConfigError: an unknown precision.
    """
    check_precision(precision)
    return_large_tensors()
    parts = [part for part in (transformer, tokenizer.decoding) if part is not None]
    dtype = autocast_dtype(precision, tokenizer.device)
    if dtype is not None:
        for part in parts:
            _store(part, dtype, tokenizer.device)
        release_freed_memory()  # of the wide weights


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device multiplies in ``dtype`` natively. Emulation is several times slower than float32."""
    if dtype == torch.float32:
        return True
    if device.type == "cpu":
        return dtype == torch.bfloat16 and autocast_dtype("auto", device) == dtype
    return dtype == torch.float16 or autocast_dtype("auto", device) == dtype


def _store(network: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Store large weights in ``dtype``. Multiply in it if the device can; else widen each weight when it is used."""
    native = multiplies(dtype, device)
    others = {id(part) for owner in network.modules() if isinstance(owner, Conditioner) for part in owner.modules()}
    for part in network.modules():
        if isinstance(part, MATRICES) and id(part) not in others:
            part.weight = nn.Parameter(part.weight.detach().to(dtype), requires_grad=False)
            if not native:
                parametrize.register_parametrization(part, "weight", _Widened(), unsafe=True)  # it changes the type
    if native:
        for name in ("forward", "modulation"):  # the methods that sampling calls
            if hasattr(network, name):
                setattr(network, name, torch.autocast(device.type, dtype)(getattr(network, name)))


class _Widened(nn.Module):
    def forward(self, *stored: Any) -> Tensor:
        return stored[0].float()
