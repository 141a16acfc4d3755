"""An optimizer's state as files hold it: tensors in safetensors, everything else (a plain step count) in JSON.

State belongs to the name of its parameter. Optimizers that were not told names number their parameters, as those of
release 0.1.0 did; either is read into either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nextscale import distributed
from nextscale.errors import CheckpointError

# How an optimizer computes depends on the machine and the run, so a checkpoint does not store it.
_IMPLEMENTATION = {"params", "fused", "foreach", "capturable", "differentiable"}


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """``"<parameter name>.<key>"``, e.g. ``head.weight.exp_avg``, and the tensor."""
    names = _names(optimizer.param_groups, _sizes(optimizer))
    return {
        f"{names[index]}.{key}": value
        for index, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


def _names(groups: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> list[str]:
    """The name of each parameter, in the order of the optimizer; its number where it has none."""
    names = [name for group in groups for name in group.get("param_names", ())]
    return names or [str(number) for number in range(sum(sizes))]


def _sizes(optimizer: Optimizer) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]


def plain_state(optimizer: Optimizer) -> dict[str, Any]:
    full = optimizer.state_dict()
    names = _names(optimizer.param_groups, _sizes(optimizer))
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
        f"{names[index]}.{key}": value
        for index, entries in full["state"].items()
        for key, value in entries.items()
        if not isinstance(value, Tensor)
    }
    return {"param_groups": groups, "values": values}


def check_groups(path: Path, key: str, saved: list[dict[str, Any]], optimizer: Optimizer) -> None:
    sizes = [group["parameters"] for group in saved]
    expected = _sizes(optimizer)
    if sizes != expected:
        raise CheckpointError(
            f"optimizer {key} of checkpoint {path} does not fit: it has groups of {sizes} parameters, "
            f"but this run's optimizer has {expected}"
        )
    for there, group in zip(saved, optimizer.param_groups, strict=True):
        names, now = there.get("param_names"), group.get("param_names")
        if names and now and set(names) != set(now):
            differing = ", ".join(sorted(set(names) ^ set(now))[:3])
            raise CheckpointError(
                f"optimizer {key} of checkpoint {path} does not fit: it has other parameters ({differing}, ...)"
            )


def fill_optimizer(optimizer: Optimizer, stored: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved_groups, sizes = plain["param_groups"], _sizes(optimizer)
    named = all("param_names" in group for group in (*saved_groups, *optimizer.param_groups))
    ordered = _names(optimizer.param_groups if named else saved_groups, sizes)
    number_of = {name: number for number, name in enumerate(ordered)}
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**stored, **plain["values"]}.items():
        parameter, key = name.rsplit(".", 1)
        number = number_of[parameter]
        if isinstance(value, Tensor):
            value = _like_parameter(value, parameters[number])
        state.setdefault(number, {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    for group, saved in zip(groups, plain["param_groups"], strict=True):
        for key, value in saved.items():
            if key in ("parameters", "param_names"):
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
    if distributed.is_spread(parameter):
        return distributed.spread_like(value, parameter)
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
