"""Checkpoints: safetensors and JSON, written whole or not at all, verified before use. Nothing is unpickled.

::

    folder/step-00000100/          or folder/best/
        NAME.safetensors           a module's state_dict, or named tensors
        optimizer-NAME.safetensors "<parameter number>.<key>", e.g. 3.exp_avg
        state.json                 step, the caller's state, hyperparameters, size and sha256 of each file
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, NonNegativeInt, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from nextscale.errors import CheckpointError
from nextscale.storage.files import (
    digest,
    fsync,
    json_digest,
    load_tensors,
    parse_json,
    partial_name,
    remove,
    replace_folder,
    restore_folder,
    save_tensors,
    write_json_atomic,
    writing,
)

_STEP = re.compile(r"step-(\d{8,})")
# How an optimizer computes depends on the machine and the run, so a checkpoint does not store it.
_IMPLEMENTATION = {"params", "fused", "foreach", "capturable", "differentiable"}


def save_checkpoint(
    folder: Path | str,
    step: int,
    modules: Mapping[str, nn.Module],
    tensors: Mapping[str, Mapping[str, Tensor]],
    optimizers: Mapping[str, Optimizer],
    state: Mapping[str, Any],
    keep: int,
    name: str | None = None,
    former: str | None = None,
) -> Path:
    """Write ``folder/step-XXXXXXXX`` (or ``folder/name``), then drop all but the last ``keep`` steps.

    A checkpoint of the same name is replaced. Named checkpoints and those of later steps are never dropped.

    Args:
        step: optimizer steps done.
        modules: modules to save, by name.
        tensors: further tensors (such as a moving average of the weights), by file name, then by tensor name.
        optimizers: optimizers whose state and hyperparameters to save, by name.
        state: anything JSON-able; ``load_checkpoint`` returns it.
        keep: number of step checkpoints to keep, including this one; at least 1.
        name: name of a checkpoint outside the sequence of steps (``best``).
        former: the name under which the checkpoint that this one replaces is kept; None drops it.

    Raises:
        TrainingError: the disk is full or not writable; existing checkpoints are untouched.
        ValueError: two files with the same name, ``keep`` below 1, or a module whose state is not all tensors.
    """
    folder = Path(folder)
    target = folder / (name or f"step-{step:08d}")
    files = _file_contents(modules, tensors, optimizers)
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    with writing(target, lambda: _last_good(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder)
        partial = partial_name(target)
        try:
            partial.mkdir()
            for file, contents in files.items():
                save_tensors(partial / file, contents)
            body = {
                "step": step,
                "state": dict(state),
                "optimizers": {key: _plain_state(optimizer) for key, optimizer in optimizers.items()},
                "files": {
                    file: {"bytes": (partial / file).stat().st_size, "sha256": digest(partial / file)}
                    for file in sorted(files)
                },
            }
            write_json_atomic(partial / "state.json", {**body, "sha256": json_digest(body)})
            fsync(partial)
            if former is not None and target.exists():
                _copy_folder(target, folder / former)
            replace_folder(partial, target)
        except BaseException:
            remove(partial)
            raise
        if name is None:
            past = [path for number, path in _steps(folder) if number <= step]
            for path in past[:-keep]:
                remove_checkpoint(path)
    return target


def load_checkpoint(
    path: Path | str,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer] | None = None,
    device: torch.device | str = "cpu",
    tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
    repair: bool = True,
) -> dict[str, Any]:
    """Fill modules, optimizers and ``tensors`` (in place) from a checkpoint; return its state and ``step``.

    The whole checkpoint is first verified and compared with its targets, so that an error leaves everything
    unchanged. Training then continues as if it had not stopped, bit for bit on the CPU.

    Args:
        modules: modules to fill; the checkpoint may hold more.
        optimizers: optimizers to fill; the modules' parameters must already be on their device.
        device: device that files are read to, before their tensors are copied to the modules' own device.
        tensors: further tensors to fill, named as they were saved.
        repair: finish what a killed process left half replaced. Not for readers beside a training, which may be at it.

    Raises:
        CheckpointError: it is missing, damaged (the message names an intact earlier one), or of another model.
    """
    path = Path(path)
    if repair:
        restore_folder(path)
    body = sound_checkpoint(path)
    targets = {key: _state_tensors(key, module) for key, module in modules.items()}
    targets |= {key: dict(group) for key, group in (tensors or {}).items()}
    for key in (*targets, *(f"optimizer-{key}" for key in optimizers or {})):
        if f"{key}.safetensors" not in body["files"]:
            known = ", ".join(sorted(body["files"]))
            raise CheckpointError(f"checkpoint {path} holds no {key} (it holds {known})")
    loaded = {key: load_tensors(path / f"{key}.safetensors", device) for key in targets}
    for key, target in targets.items():
        _check_fit(path, key, loaded[key], target)
    for key, optimizer in (optimizers or {}).items():
        _check_groups(path, key, body["optimizers"][key]["param_groups"], optimizer)

    for key, module in modules.items():
        module.load_state_dict(loaded[key])
    with torch.no_grad():
        for key, group in (tensors or {}).items():
            for name, target in group.items():
                target.copy_(loaded[key][name])
    for key, optimizer in (optimizers or {}).items():
        # Read to the CPU, where step counts stay; the optimizer moves the rest to its parameters' device.
        stored = load_tensors(path / f"optimizer-{key}.safetensors")
        _fill_optimizer(optimizer, stored, body["optimizers"][key])
    return {**body["state"], "step": body["step"]}


def latest_checkpoint(folder: Path | str) -> Path | None:
    """The finished checkpoint with the highest step, intact or not; None if there is none."""
    folder = Path(folder)
    for leftover in folder.glob(".step-*.replaced"):
        restore_folder(folder / leftover.name.removeprefix(".").removesuffix(".replaced"))
    steps = finished_steps(folder)
    return steps[-1] if steps else None


def finished_steps(folder: Path) -> list[Path]:
    """The finished step checkpoints, oldest first. Changes nothing, so it may look on while a run is trained."""
    return [path for _, path in _steps(folder)]


def stage_of(path: Path) -> str | None:
    """The STAGE in the path ``RUN/checkpoints/STAGE/step-NUMBER``; None for any other path."""
    resolved = path.resolve()
    if not _STEP.fullmatch(resolved.name) or resolved.parent.parent.name != "checkpoints":
        return None
    return resolved.parent.name


def set_aside_later(folder: Path | str, step: int) -> list[Path]:
    """Rename the checkpoints after ``step``, so that they do not mix with those of a run that resumes from there.

    They stay on the disk as ``abandoned-step-XXXXXXXX``. Returns their new paths.
    """
    return [set_aside(path, "abandoned") for number, path in _steps(Path(folder)) if number > step]


def set_aside(path: Path, why: str) -> Path:
    """Rename a checkpoint to ``WHY-NAME``, over one that already has this name; returns the new path."""
    target = path.with_name(f"{why}-{path.name}")
    remove(target)
    return path.rename(target)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, if it exists. A killed process never leaves half of it under its name."""
    if path.exists():
        partial = partial_name(path)
        remove(partial)
        os.rename(path, partial)
        remove(partial)


def check_checkpoint(path: Path | str) -> dict[str, Any]:
    """Verify every file against the manifest; returns the parsed ``state.json``.

    Raises:
        CheckpointError: ``… is damaged (model.safetensors is truncated: 123 of 456 bytes)``
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        text = (path / "state.json").read_bytes()
    except OSError:
        raise CheckpointError(f"checkpoint {path} is damaged (state.json is missing)") from None
    try:
        body = parse_json(text, finite=False)  # a caller's state may hold infinities
        expected = body.pop("sha256")
        sound = json_digest(body) == expected
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"checkpoint {path} is damaged (state.json is not valid JSON)") from None
    if not sound:
        raise CheckpointError(f"checkpoint {path} is damaged (state.json does not match its checksum)")
    try:
        _Body.model_validate(body)
    except ValidationError:
        raise CheckpointError(f"checkpoint {path} is damaged (state.json is of something else)") from None
    for file, entry in body["files"].items():
        problem = _file_problem(path / file, entry["bytes"], entry["sha256"])
        if problem:
            raise CheckpointError(f"checkpoint {path} is damaged ({file} {problem})")
    return body


class _Optimizer(BaseModel):
    param_groups: list[dict[str, Any]]
    values: dict[str, Any]


class _File(BaseModel):
    bytes: int
    sha256: str


class _Body(BaseModel):
    """``state.json`` without its checksum. Other files of a run have checksums of the same kind."""

    step: NonNegativeInt
    state: dict[str, Any]
    optimizers: dict[str, _Optimizer]
    files: dict[str, _File]


def _file_problem(file: Path, size: int, sha256: str) -> str | None:
    if not file.is_file():
        return "is missing"
    found = file.stat().st_size
    if found != size:
        return f"is {'truncated' if found < size else 'too long'}: {found} of {size} bytes"
    return None if digest(file) == sha256 else "is corrupt: its checksum differs"


def sound_checkpoint(path: Path | str) -> dict[str, Any]:
    """Like ``check_checkpoint``, but the error names another checkpoint that is intact, preferably the one before."""
    path = Path(path)
    try:
        return check_checkpoint(path)
    except CheckpointError as error:
        match = _STEP.fullmatch(path.name)
        for step, earlier in reversed(_steps(path.parent)):
            if earlier == path or (match and step > int(match[1])):
                continue
            try:
                check_checkpoint(earlier)
            except CheckpointError:
                continue
            which = "the one before it" if match else "another"
            raise CheckpointError(f"{error}; {which} is intact: --resume {earlier}") from None
        raise CheckpointError(f"{error}; no other one in {path.parent} is intact") from None


def _file_contents(
    modules: Mapping[str, nn.Module],
    tensors: Mapping[str, Mapping[str, Tensor]],
    optimizers: Mapping[str, Optimizer],
) -> dict[str, Mapping[str, Tensor]]:
    """File name -> the tensors it holds."""
    contents: dict[str, Mapping[str, Tensor]] = {}
    pairs = [(key, _state_tensors(key, module)) for key, module in modules.items()]
    pairs += [(key, dict(group)) for key, group in tensors.items()]
    pairs += [(f"optimizer-{key}", _optimizer_tensors(optimizer)) for key, optimizer in optimizers.items()]
    for key, group in pairs:
        if f"{key}.safetensors" in contents:
            raise ValueError(f"two parts of a checkpoint are called {key}")
        contents[f"{key}.safetensors"] = group
    return contents


def _state_tensors(key: str, module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{key}: {name} is not a tensor, but only tensors can be saved")
    return state


def _check_fit(path: Path, key: str, stored: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    differences = {
        "missing": sorted(target.keys() - stored.keys()),
        "unexpected": sorted(stored.keys() - target.keys()),
        "wrong shape": [
            f"{name} is {tuple(stored[name].shape)}, not {tuple(target[name].shape)}"
            for name in sorted(stored.keys() & target.keys())
            if stored[name].shape != target[name].shape
        ],
    }
    found = [f"{what}: {_first_few(names)}" for what, names in differences.items() if names]
    if found:
        raise CheckpointError(f"{key} of checkpoint {path} does not fit this model ({'; '.join(found)})")


def _first_few(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


# Optimizers. Tensors go to safetensors, everything else (a plain step count, a None) to state.json.


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{key}": value
        for index, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


def _plain_state(optimizer: Optimizer) -> dict[str, Any]:
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


def _check_groups(path: Path, key: str, saved: list[dict[str, Any]], optimizer: Optimizer) -> None:
    sizes = [group["parameters"] for group in saved]
    expected = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != expected:
        raise CheckpointError(
            f"optimizer {key} of checkpoint {path} does not fit: it has groups of {sizes} parameters, "
            f"but this run's optimizer has {expected}"
        )


def _fill_optimizer(optimizer: Optimizer, stored: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
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


# Names


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """The finished step checkpoints, oldest first."""
    found = ((_STEP.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ()))
    return sorted((int(match[1]), path) for match, path in found if match and path.is_dir())


def _copy_folder(source: Path, target: Path) -> None:
    """Copy ``source``, whose files never change, to ``target``: as hard links where the file system has them."""
    partial = partial_name(target)
    remove(partial)
    try:
        shutil.copytree(source, partial, copy_function=os.link)
    except OSError:
        remove(partial)
        shutil.copytree(source, partial)
    replace_folder(partial, target)


def _clear_leftovers(folder: Path) -> None:
    """Restore or remove what a killed process left behind."""
    for leftover in folder.glob(".*.replaced"):
        restore_folder(folder / leftover.name.removeprefix(".").removesuffix(".replaced"))
    clear_partials(folder)


def clear_partials(folder: Path) -> None:
    """Remove checkpoints that a killed process left half written or half removed."""
    for leftover in folder.glob(".*.partial"):
        remove(leftover)


def _last_good(folder: Path) -> str:
    steps = _steps(folder)
    return f"; the last good checkpoint is {steps[-1][1]}" if steps else "; there is no earlier checkpoint"
