"""Trained models on disk: ``config.json`` says how to build one, ``model.safetensors`` holds its weights.

Each of the two files carries a checksum of the other's content, so that neither can change, or come from elsewhere,
without being noticed (``storage.seal``). No code from a file is run, and nothing here needs the training data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, Field, PositiveInt, field_validator
from torch import Tensor, nn

from nextscale import plugins
from nextscale.conditioning import ConditionSpec
from nextscale.config.dump import dump_run_config
from nextscale.config.sections import RunConfig, TransformerConfig
from nextscale.errors import CheckpointError, ConfigError, NextscaleError, PluginError
from nextscale.hub import run_folder
from nextscale.meta import without_memory
from nextscale.modality import Modality
from nextscale.storage.files import (
    one_line,
    partial_name,
    remove,
    replace_folder,
    save_tensors_atomic,
    stored_settings,
    write_text_atomic,
    writing,
)
from nextscale.storage.seal import is_sealed, read_sealed, sealed_tensors, weights_digest, write_sealed
from nextscale.tokens.pyramid import Schedule
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer

M = TypeVar("M", bound=nn.Module)


class _TokenizerBody(BaseModel):
    """``tokenizer/config.json``. What the modality makes of its two sections is checked when the model is built."""

    modality: str
    tokenizer: dict[str, Any]
    description: dict[str, Any]


class _TransformerBody(BaseModel):
    """``transformer/config.json``."""

    transformer: dict[str, Any]
    conditions: list[ConditionSpec]
    schedule: list[list[PositiveInt]] = Field(min_length=1)
    token_space: dict[str, Any]
    tokenizer_weights: str | None = None
    """sha256 of the weights of the tokenizer whose tokens it predicts; older files have none."""

    @field_validator("schedule")
    @classmethod
    def _scales_have_axes(cls, scales: list[list[int]]) -> list[list[int]]:
        if not all(scales):
            raise ValueError("a scale needs at least one axis")
        return scales

    @field_validator("conditions")
    @classmethod
    def _names_fit(cls, specs: list[ConditionSpec]) -> list[ConditionSpec]:
        if len({spec.name for spec in specs}) < len(specs):
            raise ValueError("two conditions have the same name")
        for spec in specs:
            if spec.names and len(spec.names) != spec.size:
                raise ValueError(f"{spec.name} has {len(spec.names)} names for {spec.size} classes")
        return specs


class _ScorerBody(BaseModel):
    """``scorer/config.json``."""

    scorer: dict[str, Any]
    transformer_weights: str
    """sha256 of the weights of the transformer whose draws it scores."""


_BODIES: dict[str, type[BaseModel]] = {
    "tokenizer": _TokenizerBody,
    "transformer": _TransformerBody,
    "scorer": _ScorerBody,
}


def new_transformer(
    config: TransformerConfig,
    tokenizer: MultiscaleTokenizer,
    conditions: Sequence[ConditionSpec],
    schedule: Schedule | None = None,
) -> ScaleTransformer:
    """A fresh transformer for a tokenizer's tokens and inputs."""
    schedule = schedule or tokenizer.schedule()
    return ScaleTransformer(
        config,
        tokenizer.token_space,
        tokenizer.feature_dim,
        schedule,
        conditions,
        stem=tokenizer.build_stem(config.model_width),
        codebook=tokenizer.codebook,
        scale_names=tokenizer.every_scale_name(len(schedule)),
    )


def save_tokenizer(run: Path, tokenizer: MultiscaleTokenizer, config: RunConfig, description: dict[str, Any]) -> None:
    body = {
        "modality": config.modality,
        "tokenizer": config.tokenizer.model_dump(mode="json"),
        "description": description,
    }
    write_sealed(run / "tokenizer", tokenizer.state_dict(), body)


def load_tokenizer(run: Path, device: torch.device | str = "cpu") -> MultiscaleTokenizer:
    """The tokenizer that stage 1 left in a run folder, in evaluation mode.

    Raises:
        CheckpointError: there is none, or it is damaged.
        HubError: the run is on the hub and cannot be loaded from there.
    """
    run = run_folder(run)
    body, modality, config = _stored_tokenizer(run)

    def build() -> MultiscaleTokenizer:
        return modality.build_tokenizer(config, body["description"])

    tokenizer = load_part(run, "tokenizer", build)
    tokenizer.description = body["description"]
    return tokenizer.to(device).eval()


def _stored_tokenizer(run: Path) -> tuple[dict[str, Any], Modality, Any]:
    body = stored_config(run, "tokenizer")
    modality = plugins.modality(body["modality"])
    section = plugins.modality_config(body["modality"]).tokenizer
    return body, modality, stored_settings(section, body["tokenizer"], run / "tokenizer" / "config.json")


def save_transformer(run: Path, transformer: ScaleTransformer) -> None:
    body = {
        "transformer": transformer.config.model_dump(mode="json"),
        "conditions": [spec.model_dump(mode="json") for spec in transformer.conditioner.specs],
        "schedule": [list(scale.shape) for scale in transformer.schedule.scales],
        "token_space": transformer.token_space.describe(),
        "tokenizer_weights": weights_digest(run / "tokenizer") if has(run, "tokenizer") else None,
    }
    write_sealed(run / "transformer", transformer.state_dict(), body)


def load_transformer(run: Path, tokenizer: MultiscaleTokenizer, device: torch.device | str = "cpu") -> ScaleTransformer:
    """The transformer that stage 2 left in a run folder, in evaluation mode.

    Raises:
        CheckpointError: there is none, it is damaged, or it predicts other tokens than the tokenizer's.
        HubError: as ``load_tokenizer``.
    """
    run = run_folder(run)
    body = stored_config(run, "transformer")
    if body["token_space"] != tokenizer.token_space.describe():
        raise CheckpointError(
            f"{run}/transformer predicts {body['token_space']}; this tokenizer has {tokenizer.token_space.describe()}"
        )
    trained_with = body.get("tokenizer_weights")
    if trained_with and has(run, "tokenizer") and trained_with != weights_digest(run / "tokenizer"):
        raise CheckpointError(
            f"{run}/transformer was trained on tokens of another tokenizer than {run}/tokenizer: put that one back, or "
            f"remove {run}/transformer, {run}/checkpoints/transformer and {run}/tokens.zarr and train it anew"
        )
    path = run / "transformer" / "config.json"
    conditions = [stored_settings(ConditionSpec, spec, path) for spec in body["conditions"]]
    config = stored_settings(TransformerConfig, body["transformer"], path)

    def build() -> ScaleTransformer:
        return new_transformer(config, tokenizer, conditions, Schedule.of(body["schedule"]))

    return load_part(run, "transformer", build).to(device).eval()


def save_run(
    run: Path,
    config: RunConfig,
    description: dict[str, Any],
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer | None = None,
    extra: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write a run folder of finished models, whole or not at all, as training would have left it.

    Args:
        description: what the tokenizer was told about its data (``DataSplits.description``).
        extra: further tensors by file name, for exporters; nothing else reads them.

    Raises:
        ConfigError: the folder exists.
        TrainingError: the disk is full or not writable.
    """
    run = Path(run)
    refuse_existing(run)
    partial = partial_name(run)
    with writing(run):
        try:
            remove(partial)
            partial.mkdir(parents=True)
            write_text_atomic(partial / "config.yaml", dump_run_config(config))
            for name, tensors in (extra or {}).items():
                save_tensors_atomic(partial / f"{name}.safetensors", tensors)
            save_tokenizer(partial, tokenizer, config, description)
            if transformer is not None:
                save_transformer(partial, transformer)
            replace_folder(partial, run)
        except BaseException:
            remove(partial)
            raise


def refuse_existing(run: Path) -> None:
    """Raise ConfigError if ``run`` already exists."""
    if run.exists():
        raise ConfigError(f"run folder {run} exists: name another with --out")


def has(run: Path, part: str) -> bool:
    """Whether a run folder holds a trained ``tokenizer``, ``transformer`` or ``scorer``."""
    return (run / part / "model.safetensors").exists()


def stored_config(run: Path, part: str) -> dict[str, Any]:
    """The contents of ``config.json`` of a trained ``tokenizer``, ``transformer`` or ``scorer``.

    Raises:
        CheckpointError: there is none, or it is damaged.
        HubError: as ``load_tokenizer``.
    """
    run = run_folder(run)
    if not run.is_dir():
        raise CheckpointError(f"no run folder at {run}")
    if not has(run, part):
        raise CheckpointError(
            f"{run} holds no trained {part}: run `nextscale train` with --stage {part} (or --resume auto) first"
        )
    body = read_sealed(run / part)
    stored_settings(_BODIES[part], body, run / part / "config.json")
    return body


def load_part(run: Path, part: str, build: Callable[[], M]) -> M:
    """Build a model and fill it with the weights of a ``part`` of a run.

    Raises:
        CheckpointError: it is damaged, or does not fit.
    """
    folder = run / part
    weights = sealed_tensors(folder)
    if not is_sealed(folder):
        # Nothing vouches for the sizes in this file: compare them with the weights before they take memory.
        with _building(folder), without_memory():
            shapes = build().state_dict()
        for name in sorted({*shapes, *weights}):
            there, here = (shape_of(tensors.get(name)) for tensors in (shapes, weights))
            if there != here:
                raise _does_not_fit(folder, f"{name} should be {there}, but is {here}")
    with _building(folder):
        model = build()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise _does_not_fit(folder, first) from None
    return model


@contextmanager
def _building(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the modality meets a description that it did not write
        if isinstance(error, NextscaleError) and not isinstance(error, PluginError):
            raise
        what = one_line(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {one_line(error)}"
        raise CheckpointError(
            f"no {folder.name} can be built from {folder}/config.json ({what}): it was written by another version, or "
            "is damaged"
        ) from error


def _does_not_fit(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{folder}/model.safetensors does not fit {folder}/config.json: {what}")


def shape_of(tensor: Tensor | None) -> str:
    """In words: ``3 x 4``, ``one number``, or ``missing``."""
    return "missing" if tensor is None else " x ".join(map(str, tensor.shape)) or "one number"
