"""The models of a training that is still running, or that was interrupted, from its checkpoints. Changes nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from nextscale import plugins
from nextscale.config.run import load_run_config
from nextscale.errors import CheckpointError, ConfigError
from nextscale.storage.checkpoint import load_checkpoint
from nextscale.storage.checkpoint_folder import check_checkpoint, finished_steps
from nextscale.storage.files import replaced_name
from nextscale.storage.models import has, load_tokenizer, new_transformer
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer

ATTEMPTS = 3
"""A training that goes on may remove a checkpoint while it is being read."""


def load_unfinished(
    run: Path, which: str, device: torch.device | str = "cpu"
) -> tuple[MultiscaleTokenizer, ScaleTransformer]:
    """The tokenizer and the transformer of ``run`` in evaluation mode, the transformer as a checkpoint has it.

    Opens the run's data, because only a finished model says which conditions it has.

    Args:
        which: ``best``, the weights with the lowest validation loss so far, or ``last``, those of the latest
            checkpoint (their moving average, if there is one). A tokenizer that is not finished comes from its own.

    Raises:
        ConfigError: another ``which``.
        DataError: the data cannot be opened.
        CheckpointError: the transformer has no such checkpoint yet, or it is damaged.
    """
    if which not in ("best", "last"):
        raise ConfigError(f"unknown checkpoint {which!r}: it should be best or last")
    if not run.is_dir():
        raise CheckpointError(f"no run folder at {run}")
    config = load_run_config(run)
    _path(run, "transformer", which)  # raises before the data is opened
    modality = plugins.modality(config.modality)
    data = modality.open_data(config.data)
    if has(run, "tokenizer"):
        tokenizer = load_tokenizer(run, device)
    else:
        tokenizer = modality.build_tokenizer(config.tokenizer, data.description)
        tokenizer.description = data.description
        _fill(run, "tokenizer", which, tokenizer)
    transformer = new_transformer(config.transformer, tokenizer, data.conditions)
    _fill(run, "transformer", which, transformer)
    return tokenizer.to(device).eval(), transformer.to(device).eval()


def _fill(run: Path, stage: str, which: str, model: nn.Module) -> None:
    for attempt in range(ATTEMPTS):
        path = _path(run, stage, which)
        try:
            files = check_checkpoint(path)["files"]
            name = next(name for name in ("model", "ema", stage) if f"{name}.safetensors" in files)
            load_checkpoint(path, {name: model}, repair=False)
            return
        except (CheckpointError, OSError):
            if attempt == ATTEMPTS - 1:
                raise


def _path(run: Path, stage: str, which: str) -> Path:
    folder = run / "checkpoints" / stage
    if which == "best":
        best = folder / "best"
        found = [path for path in (best, replaced_name(best)) if path.is_dir()]
    else:
        found = finished_steps(folder)[-1:]
    if not found:
        what = "best weights" if which == "best" else "checkpoint"
        raise CheckpointError(f"{run} has no {what} of its {stage} yet: there is none in {folder}")
    return found[0]
