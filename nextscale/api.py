"""Trained models for people in notebooks: ``nextscale.load(run).generate(16, label=3)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale import plugins
from nextscale.conditioning import ConditionSpec
from nextscale.config import SamplingConfig
from nextscale.errors import ConfigError, NextscaleError, unknown
from nextscale.modality import Modality
from nextscale.runconfig import RunConfig, load_run_config
from nextscale.sampling import generate
from nextscale.store import load_tokenizer, load_transformer
from nextscale.tokenizer import MultiscaleTokenizer
from nextscale.training.distributed import pick_device
from nextscale.training.randomness import sample_seeds
from nextscale.transformer import ScaleTransformer


@dataclass
class Samples:
    """``samples`` as the modality has them (images: B C H W in [-1, 1]); ``steps[k]``, the same decoded after scale
    k (only where asked for); the ``conditions`` they were drawn under."""

    samples: Any
    steps: list[Any]
    conditions: dict[str, Tensor]


@dataclass
class Model:
    """A tokenizer and a transformer that belong together."""

    modality: Modality
    tokenizer: MultiscaleTokenizer
    transformer: ScaleTransformer
    config: RunConfig

    @property
    def conditions(self) -> tuple[ConditionSpec, ...]:
        return self.transformer.conditioner.specs

    def generate(
        self,
        num_samples: int,
        *,
        seed: int = 0,
        sampling: Mapping[str, Any] | SamplingConfig | None = None,
        conditions: Mapping[str, Any] | None = None,
        return_steps: bool = False,
        batch_size: int = 64,
        **named: Any,
    ) -> Samples:
        """Draw samples.

        Args:
            seed: sample i is a function of (seed, i) alone, so neither ``batch_size`` nor ``num_samples`` changes it.
            sampling: fields of ``SamplingConfig`` that differ from the run's.
            conditions: by name, one value or one a sample: a class's number or name, or a vector. A class that is
                not mentioned goes through all its values in turn; None leaves it unconditional.
            named: fields of ``SamplingConfig`` or conditions: ``generate(16, label=3, guidance=2.0)``.

        Raises:
            ConfigError: an unknown setting. NextscaleError: an unknown condition, or a label out of range.
        """
        overrides = dict(sampling.model_dump() if isinstance(sampling, SamplingConfig) else sampling or {})
        values = dict(conditions or {})
        for name, value in named.items():
            (overrides if name in SamplingConfig.model_fields else values)[name] = value
        config = self._sampling(overrides)
        if num_samples < 1 or batch_size < 1:
            raise NextscaleError(f"cannot draw {num_samples} samples, {batch_size} at a time: ask for at least 1")
        resolved = self._conditions(values, num_samples)
        device = self.tokenizer.device
        parts: list[Any] = []
        steps: list[list[Any]] = []
        for first in range(0, num_samples, batch_size):
            rows = slice(first, min(first + batch_size, num_samples))
            seeds = sample_seeds(seed, np.arange(rows.start, rows.stop)) >> np.uint64(1)
            generators = [torch.Generator(device).manual_seed(int(one)) for one in seeds]
            batch = {name: value[rows].to(device) for name, value in resolved.items()}
            drawn = generate(self.tokenizer, self.transformer, len(generators), batch, config, generators)
            with torch.inference_mode():
                if return_steps:
                    steps.append([self.tokenizer.decode(state) for state in drawn.states[1:]])
                parts.append(steps[-1][-1] if return_steps else self.tokenizer.decode(drawn.state))
        joined = [self.modality.concatenate(list(batches)) for batches in zip(*steps, strict=True)]
        return Samples(self.modality.concatenate(parts), joined, resolved)

    def _sampling(self, overrides: Mapping[str, Any]) -> SamplingConfig:
        for name in overrides:
            if name not in SamplingConfig.model_fields:
                raise ConfigError(unknown("sampling setting", name, SamplingConfig.model_fields))
        from pydantic import ValidationError

        try:
            return SamplingConfig.model_validate({**self.config.sampling.model_dump(), **overrides})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"sampling.{name}: {first['msg']} (got {first['input']!r})") from None

    def _conditions(self, values: Mapping[str, Any], number: int) -> dict[str, Tensor]:
        specs = {spec.name: spec for spec in self.conditions}
        for name in values:
            if name not in specs:
                known = [*specs, *SamplingConfig.model_fields]
                raise NextscaleError(unknown("condition or sampling setting", name, known))
        resolved = {}
        for name, spec in specs.items():
            if name not in values or (isinstance(values[name], str) and values[name] == "all"):
                if spec.kind == "class":
                    resolved[name] = torch.arange(number) % spec.size
            elif values[name] is not None:
                resolved[name] = _as_tensor(spec, values[name], number)
        self.transformer.conditioner.check(resolved)
        return resolved


def _as_tensor(spec: ConditionSpec, value: Any, number: int) -> Tensor:
    """One value a sample, from one for all or one each."""
    if spec.kind == "vector":
        vector = torch.as_tensor(value, dtype=torch.float32)
        vector = vector.expand(number, -1) if vector.dim() == 1 else vector
        if vector.shape != (number, spec.size):
            raise NextscaleError(
                f"{spec.name} has the shape {tuple(vector.shape)}: give {spec.size} numbers, or as many for each "
                f"of the {number} samples"
            )
        return vector
    entries: list[Any] = [value] * number if isinstance(value, str) or np.ndim(value) == 0 else list(value)
    if len(entries) != number:
        raise NextscaleError(f"{len(entries)} values of {spec.name} for {number} samples: give one, or one a sample")
    return torch.tensor([_class_number(spec, entry) for entry in entries])


def _class_number(spec: ConditionSpec, value: Any) -> int:
    if isinstance(value, str) and value in spec.names:
        return spec.names.index(value)
    try:
        number = int(value)
        if isinstance(value, str) or number == value:
            return number
    except (TypeError, ValueError):
        pass
    raise NextscaleError(unknown(spec.name, str(value), spec.names))


def load(run: str | Path, device: str = "auto") -> Model:
    """The models of a run folder, ready to sample.

    Raises:
        CheckpointError: the folder, or one of its models, is missing or damaged.
    """
    run = Path(run)
    where = pick_device(device)
    tokenizer = load_tokenizer(run, where)
    transformer = load_transformer(run, tokenizer, where)
    config = load_run_config(run)
    return Model(plugins.modality(config.modality), tokenizer, transformer, config)
