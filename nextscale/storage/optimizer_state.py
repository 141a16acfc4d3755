"""An optimizer's state as files hold it: tensors in safetensors, everything else (a plain step count) in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nextscale.errors import CheckpointError

# How an optimizer computes depends on the machine and the run, so a checkpoint does not store it.
_IMPLEMENTATION = {"params", "fused", "foreach", "capturable", "differentiable"}


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{key}": value
        for index, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


def plain_state(optimizer: Optimizer) -> dict[str, Any]:
    full = optimizer.state_dict()
    groups = [
        {
            "parameters": len(group["params"]),
            **{
                key: value.item() if isinstance(value, Tensor) else value
                for key, value in group.items()
                if key not in _IMPLEMENTATION
            },
        }
        for group in full["param_groups"]
    ]
    values = {
        f"{index}.{key}": value
        for index, entries in full["state"].items()
        for key, value in entries.items()
        if not isinstance(value, Tensor)
    }
    return {"param_groups": groups, "values": values}


def check_groups(path: Path, key: str, saved: list[dict[str, Any]], optimizer: Optimizer) -> None:
    sizes = [group["parameters"] for group in saved]
    expected = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != expected:
        raise CheckpointError(
            f"optimizer {key} of checkpoint {path} does not fit: it has groups of {sizes} parameters, "
            f"but this run's optimizer has {expected}"
        )


def fill_optimizer(optimizer: Optimizer, stored: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**stored, **plain["values"]}.items():
        index, key = name.split(".", 1)
        if isinstance(value, Tensor):
            value = _like_parameter(value, parameters[int(index)])
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    for group, saved in zip(groups, plain["param_groups"], strict=True):
        for key, value in saved.items():
            if key == "parameters":
                continue
            now = group.get(key)
            if isinstance(now, Tensor):
                value = torch.full_like(now, value)
            group[key] = tuple(value) if isinstance(now, tuple) else value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _like_parameter(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of ``value``, laid out as the optimizer does: like the parameter, if it has its shape.

    Fused kernels walk both side by side.
    """
    if value.shape != parameter.shape:
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
