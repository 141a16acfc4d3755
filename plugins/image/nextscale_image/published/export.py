"""Export a run's models as published VAR's .pth files."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from nextscale.plugin import (
    ConditionSpec,
    ConfigError,
    GridTokenizer,
    ScaleTransformer,
    load_tensors,
    load_tokenizer,
    load_transformer,
    replacing,
    stored_config,
)
from nextscale_image.config import ImageTokenizerConfig
from nextscale_image.published.convert import EXTRA
from nextscale_image.published.detect import NORM_GROUPS
from nextscale_image.published.names import State, constants, publish_tokenizer, publish_transformer


def publish(run: Path, transformer: bool = True) -> tuple[State, State | None]:
    """A run's tensors under published names: the tokenizer's, and the transformer's (None if not requested).

    Imported tensors come back unchanged, in float32.

    Raises:
        CheckpointError: the run has no such models.
        ConfigError: published VAR cannot represent the models.
    """
    stored = stored_config(run, "tokenizer")
    if stored["modality"] != "image":
        raise ConfigError(f"{run} is a run of modality {stored['modality']}, but published VAR holds image models")
    config = ImageTokenizerConfig.model_validate(stored["tokenizer"])
    tokenizer = load_tokenizer(run)
    assert isinstance(tokenizer, GridTokenizer)
    _check_tokenizer(run, config, tokenizer)
    stage1 = publish_tokenizer(tokenizer.state_dict(), config)
    if not transformer:
        return stage1, None
    model = load_transformer(run, tokenizer)
    condition = _check_transformer(run, model)
    state, schedule = model.state_dict(), model.schedule
    stage2 = publish_transformer(state, schedule, condition)
    if (run / f"{EXTRA}.safetensors").exists():
        parts, first = load_tensors(run / f"{EXTRA}.safetensors"), schedule.lengths[0]
        if torch.equal(parts["pos_1LC"] + parts["pos_start"], state["position"][:first]):  # untrained since import
            stage2["pos_1LC"] = torch.cat([parts["pos_1LC"], state["position"][first:]])[None]
            stage2["pos_start"] = parts["pos_start"][None]
    return stage1, stage2 | constants(schedule, model.config.depth, model.config.model_width)


def export_var(run: Path, tokenizer: Path | None = None, transformer: Path | None = None) -> list[Path]:
    """Write a run's models to published VAR's .pth files, all or none, and return the paths.

    Raises:
        CheckpointError: as ``publish``.
        ConfigError: as ``publish``, or a file exists.
        TrainingError: the disk is full or not writable.
    """
    files = [path for path in (tokenizer, transformer) if path is not None]
    for path in files:
        if path.exists():
            raise ConfigError(f"{path} exists: name another file")
    stage1, stage2 = publish(run, transformer is not None)
    # Both or neither: the files move into place once all are written.
    with ExitStack() as written:
        for path, state in ((tokenizer, stage1), (transformer, stage2)):
            if path is not None and state is not None:
                partial = written.enter_context(replacing(path))
                with partial.open("wb") as file:
                    torch.save(state, file)
    return files


def _check_tokenizer(run: Path, config: ImageTokenizerConfig, tokenizer: GridTokenizer) -> None:
    groups = {module.num_groups for module in tokenizer.modules() if isinstance(module, nn.GroupNorm)}
    for name, value, needed in (
        ("norm_groups", sorted(groups), [NORM_GROUPS]),
        ("shortcut", config.shortcut, False),
        ("quantizer.codes", config.quantizer.codes, tokenizer.token_space.vocabulary),
        ("quantizer.target", config.quantizer.target, "residual"),
        ("quantizer.rate", config.quantizer.rate, 0),
        ("quantizer.distance", config.quantizer.distance, "euclidean"),
        ("quantizer.upsample", config.quantizer.upsample, "cubic"),
        ("quantizer.phi_ratio", config.quantizer.phi_ratio, 0.5),
    ):
        if value != needed:
            raise ConfigError(f"{run} cannot be exported: tokenizer.{name} is {value}, but published VAR has {needed}")


def _check_transformer(run: Path, model: ScaleTransformer) -> ConditionSpec:
    """Check that published VAR can represent the model, and return its one condition."""
    settings = model.config.model_dump()
    for name, needed in (
        ("positions", "absolute"),
        ("scale_embedding", True),
        ("mlp", "gelu"),
        ("head", "linear"),
        ("norm", "layernorm"),
        ("attention", "full"),
        ("in_scale_steps", False),
        ("refiner", None),
    ):
        if settings[name] != needed:
            raise ConfigError(f"{run} cannot be exported: transformer.{name} is {settings[name]}, not {needed}")
    conditions = model.conditioner.specs
    if len(conditions) != 1 or conditions[0].kind != "class":
        names = ", ".join(spec.name for spec in conditions) or "none"
        raise ConfigError(f"{run} cannot be exported: published VAR has one class condition, this model has {names}")
    return conditions[0]
