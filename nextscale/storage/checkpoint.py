"""Checkpoints: safetensors and JSON, written whole or not at all, verified before use. Nothing is unpickled.

::

    folder/step-00000100/          or folder/best/
        NAME.safetensors           a module's state_dict, or named tensors
        optimizer-NAME.safetensors "<parameter name>.<key>", e.g. head.weight.exp_avg
        state.json                 step, the caller's state, hyperparameters, size and sha256 of each file
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nextscale import distributed
from nextscale.errors import CheckpointError
from nextscale.storage.checkpoint_folder import (
    clear_leftovers,
    copy_folder,
    last_good,
    remove_checkpoint,
    sound_checkpoint,
    steps_in,
)
from nextscale.storage.files import (
    digest,
    fsync,
    json_digest,
    load_tensors,
    partial_name,
    remove,
    replace_folder,
    restore_folder,
    save_tensors,
    write_json_atomic,
    writing,
)
from nextscale.storage.optimizer_state import check_groups, fill_optimizer, optimizer_tensors, plain_state


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

    All processes must call this. Tensors that are spread over them are gathered, so that the checkpoint does not depend
    on their number; the first process writes, while the others wait.

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
    body = {
        "step": step,
        "state": dict(state),
        "optimizers": {key: plain_state(optimizer) for key, optimizer in optimizers.items()},
    }
    distributed.on_main(lambda: _write(folder, target, files, body, keep, name, former))
    return target


def _write(
    folder: Path,
    target: Path,
    files: Mapping[str, Mapping[str, Tensor]],
    body: Mapping[str, Any],
    keep: int,
    name: str | None,
    former: str | None,
) -> None:
    with writing(target, lambda: last_good(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        partial = partial_name(target)
        try:
            partial.mkdir()
            for file, contents in files.items():
                save_tensors(partial / file, contents)
            entries = {
                file: {"bytes": (partial / file).stat().st_size, "sha256": digest(partial / file)}
                for file in sorted(files)
            }
            body = {**body, "files": entries}
            write_json_atomic(partial / "state.json", {**body, "sha256": json_digest(body)})
            fsync(partial)
            if former is not None and target.exists():
                copy_folder(target, folder / former)
            replace_folder(partial, target)
        except BaseException:
            remove(partial)
            raise
        if name is None:
            past = [path for number, path in steps_in(folder) if number <= body["step"]]
            for path in past[:-keep]:
                remove_checkpoint(path)


def load_checkpoint(
    path: Path | str,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer] | None = None,
    tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
    repair: bool = True,
) -> dict[str, Any]:
    """Fill modules, optimizers and ``tensors`` (in place) from a checkpoint; return its state and ``step``.

    The whole checkpoint is first verified and compared with its targets, so that an error leaves everything
    unchanged. Training then continues as if it had not stopped, bit for bit on the CPU.

    Args:
        modules: modules to fill; the checkpoint may hold more.
        optimizers: optimizers to fill; the modules' parameters must already be on their device.
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
    # On the CPU, where files are only mapped: a GPU that holds the modules may have no room for them twice.
    loaded = {key: load_tensors(path / f"{key}.safetensors") for key in targets}
    for key, target in targets.items():
        _check_fit(path, key, loaded[key], target)
    for key, optimizer in (optimizers or {}).items():
        check_groups(path, key, body["optimizers"][key]["param_groups"], optimizer)

    for key, module in modules.items():
        target = targets[key]
        module.load_state_dict({name: distributed.spread_like(v, target[name]) for name, v in loaded[key].items()})
    with torch.no_grad():
        for key, group in (tensors or {}).items():
            for name, target in group.items():
                target.copy_(loaded[key][name])
    for key, optimizer in (optimizers or {}).items():
        # The optimizer moves them to its parameters' device.
        stored = load_tensors(path / f"optimizer-{key}.safetensors")
        fill_optimizer(optimizer, stored, body["optimizers"][key])
    return {**body["state"], "step": body["step"]}


def _file_contents(
    modules: Mapping[str, nn.Module],
    tensors: Mapping[str, Mapping[str, Tensor]],
    optimizers: Mapping[str, Optimizer],
) -> dict[str, Mapping[str, Tensor]]:
    """File name -> the tensors it holds."""
    contents: dict[str, Mapping[str, Tensor]] = {}
    pairs = [(key, _state_tensors(key, module)) for key, module in modules.items()]
    pairs += [(key, dict(group)) for key, group in tensors.items()]
    pairs += [(f"optimizer-{key}", optimizer_tensors(optimizer)) for key, optimizer in optimizers.items()]
    for key, group in pairs:
        if f"{key}.safetensors" in contents:
            raise ValueError(f"two parts of a checkpoint are called {key}")
        contents[f"{key}.safetensors"] = {name: _on_main(value) for name, value in group.items()}
    return contents


def _on_main(tensor: Tensor) -> Tensor:
    """A spread tensor, whole on the first process, where it is moved to the CPU at once; elsewhere it is not needed."""
    if not distributed.is_spread(tensor):
        return tensor
    gathered = distributed.whole(tensor.detach())
    return gathered.cpu() if distributed.is_main() else tensor


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
