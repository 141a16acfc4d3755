"""Trained models on disk: ``config.json`` says how to build one, ``model.safetensors`` holds its weights.

No code from a file is run, and nothing here needs the training data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from nextscale import plugins
from nextscale.conditioning import ConditionSpec
from nextscale.config.run import dump_config
from nextscale.config.sections import RunConfig, TransformerConfig
from nextscale.errors import CheckpointError, ConfigError
from nextscale.storage.files import (
    load_tensors,
    partial_name,
    remove,
    replace_folder,
    save_tensors_atomic,
    write_json_atomic,
    write_text_atomic,
    writing,
)
from nextscale.tokens.pyramid import Schedule
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer

T = TypeVar("T", bound=BaseModel)


def new_transformer(
    config: TransformerConfig,
    tokenizer: MultiscaleTokenizer,
    conditions: Sequence[ConditionSpec],
    schedule: Schedule | None = None,
) -> ScaleTransformer:
    """A fresh transformer for a tokenizer's tokens and inputs."""
    return ScaleTransformer(
        config,
        tokenizer.token_space,
        tokenizer.feature_dim,
        schedule or tokenizer.schedule(),
        conditions,
        stem=tokenizer.build_stem(config.model_width),
        codebook=tokenizer.codebook,
    )


def save_tokenizer(run: Path, tokenizer: MultiscaleTokenizer, config: RunConfig, description: dict[str, Any]) -> None:
    body = {
        "modality": config.modality,
        "tokenizer": config.tokenizer.model_dump(mode="json"),
        "description": description,
    }
    _save(run / "tokenizer", tokenizer, body)


def load_tokenizer(run: Path, device: torch.device | str = "cpu") -> MultiscaleTokenizer:
    """The tokenizer that stage 1 left in a run folder, in evaluation mode.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    body = stored_config(run, "tokenizer")
    modality = plugins.modality(body["modality"])
    section = plugins.modality_config(body["modality"]).tokenizer
    config = stored_settings(section, body["tokenizer"], run / "tokenizer" / "config.json")
    tokenizer = modality.build_tokenizer(config, body["description"])
    tokenizer.description = body["description"]
    _fill(run / "tokenizer", tokenizer)
    return tokenizer.to(device).eval()


def save_transformer(run: Path, transformer: ScaleTransformer) -> None:
    body = {
        "transformer": transformer.config.model_dump(mode="json"),
        "conditions": [spec.model_dump(mode="json") for spec in transformer.conditioner.specs],
        "schedule": [list(scale.shape) for scale in transformer.schedule.scales],
        "token_space": transformer.token_space.describe(),
    }
    _save(run / "transformer", transformer, body)


def load_transformer(run: Path, tokenizer: MultiscaleTokenizer, device: torch.device | str = "cpu") -> ScaleTransformer:
    """The transformer that stage 2 left in a run folder, in evaluation mode.

    Raises:
        CheckpointError: there is none, it is damaged, or it predicts other tokens than the tokenizer's.
    """
    body = stored_config(run, "transformer")
    if body["token_space"] != tokenizer.token_space.describe():
        raise CheckpointError(
            f"{run}/transformer predicts {body['token_space']}; this tokenizer has {tokenizer.token_space.describe()}"
        )
    path = run / "transformer" / "config.json"
    conditions = [stored_settings(ConditionSpec, spec, path) for spec in body["conditions"]]
    config = stored_settings(TransformerConfig, body["transformer"], path)
    transformer = new_transformer(config, tokenizer, conditions, Schedule.of(body["schedule"]))
    _fill(run / "transformer", transformer)
    return transformer.to(device).eval()


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
            write_text_atomic(partial / "config.yaml", dump_config(config))
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


def start_from(run: Path, part: str, model: MultiscaleTokenizer | ScaleTransformer) -> list[str]:
    """Load the weights of the ``part`` (tokenizer or transformer) in ``run`` into ``model``, a fresh one.

    Only condition embeddings may differ. A class embedding for other classes is new. It starts from the old classes'
    vectors in turn, which the network can tell apart from the first step, or from the null if there were no classes.
    A model without memory (on the meta device) is only checked.

    Returns:
        the names of the new parameters.

    Raises:
        CheckpointError: ``run`` holds no such model, or its weights do not fit.
    """
    body = stored_config(run, part)
    stored, wanted = load_tensors(run / part / "model.safetensors"), model.state_dict()
    known = {spec["name"]: spec for spec in body.get("conditions", ())}
    specs = {spec.name: spec for spec in model.conditioner.specs} if isinstance(model, ScaleTransformer) else {}
    new = [name for name in wanted if name.startswith("conditioner.") and not _same_condition(name, known, specs)]
    rest = [name for name in sorted({*wanted, *stored}) if not name.startswith("conditioner.")]
    for name in rest:
        there, here = (_shape_of(tensors.get(name)) for tensors in (stored, wanted))
        if there != here:
            raise CheckpointError(
                f"cannot start from {run}/{part}: {name} is {there} there and {here} with these settings "
                "(only condition embeddings may differ)"
            )
    kept = {name: stored[name] for name in wanted if name not in new}
    if not any(value.is_meta for value in wanted.values()):
        model.load_state_dict(kept, strict=False)
        for name in new:
            kind, condition = name.split(".")[1:3]
            if kind == "embed" and specs[condition].kind == "class":
                fresh = model.get_parameter(name)
                had_classes = known.get(condition, {}).get("kind") == "class"
                null = model.get_parameter(f"conditioner.null.{condition}").data
                old = stored[name] if had_classes else null[None]
                fresh.data.copy_(old[torch.arange(len(fresh)) % len(old)])
    return new


def _same_condition(name: str, known: Mapping[str, Mapping[str, Any]], specs: Mapping[str, ConditionSpec]) -> bool:
    """Whether a condition's stored embedding (or its null, which does not depend on values) can be reused."""
    kind, condition = name.split(".")[1:3]
    if not specs:
        return not known
    if condition not in known or known[condition]["kind"] != specs[condition].kind:
        return False
    there, here = known[condition], specs[condition]
    names = {tuple(there["names"]), here.names} - {()}
    return kind == "null" or (there["size"] == here.size and len(names) < 2)


def _shape_of(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else " x ".join(map(str, tensor.shape)) or "one number"


def _save(folder: Path, model: nn.Module, body: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    write_json_atomic(folder / "config.json", body)
    # Last, because its presence means that the stage is done.
    save_tensors_atomic(folder / "model.safetensors", model.state_dict())


def has(run: Path, part: str) -> bool:
    """Whether a run folder holds a trained ``tokenizer`` or ``transformer``."""
    return (run / part / "model.safetensors").exists()


def stored_config(run: Path, part: str) -> dict[str, Any]:
    """The contents of ``config.json`` of a trained ``tokenizer`` or ``transformer``.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    run = Path(run)
    if not run.is_dir():
        raise CheckpointError(f"no run folder at {run}")
    if not has(run, part):
        raise CheckpointError(
            f"{run} holds no trained {part}: run `nextscale train` with --stage {part} (or --resume auto) first"
        )
    path = run / part / "config.json"
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}") from None


def stored_settings(section: type[T], values: Any, path: Path) -> T:
    """Parse ``values``, read from ``path``, as a section of the configuration.

    Raises:
        CheckpointError: they hold settings that this version does not know or accept.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise CheckpointError(f"{path} was written by another version, or is damaged: {what}") from None


def _fill(folder: Path, model: nn.Module) -> None:
    path = folder / "model.safetensors"
    try:
        model.load_state_dict(load_tensors(path))
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"{path} does not fit {folder}/config.json: {first}") from None
