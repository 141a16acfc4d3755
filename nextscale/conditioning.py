"""Named conditions: class labels, vectors; each with a null for classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn

from nextscale.errors import NextscaleError, unknown


class ConditionSpec(BaseModel):
    """One conditioning input. ``class``: integers below ``size``; ``vector``: B x ``size`` floats.

    ``count``: integers from 1 to ``size`` that only the tokenizer takes (``initial_state``): how large a sample is to
    be. It is not embedded, so the network sees of it what the inputs show; where it is not given, it is drawn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Literal["class", "vector", "count"] = "class"
    size: PositiveInt
    names: tuple[str, ...] = ()

    @property
    def embedded(self) -> bool:
        return self.kind != "count"


class Conditioner(nn.Module):
    """Embeds named conditions and adds them up to one vector a sample, the transformer's start token and adaLN input.

    Every condition has a learned null, used where it is dropped in training and for the unconditional half of
    guidance (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598). With no condition at all, the vector is one
    learned start.
    """

    def __init__(self, specs: Sequence[ConditionSpec], width: int) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.width = width
        self.embed = nn.ModuleDict()
        self.null = nn.ParameterDict()
        for spec in self._embedded():
            is_class = spec.kind == "class"
            self.embed[spec.name] = nn.Embedding(spec.size, width) if is_class else nn.Linear(spec.size, width)
            self.null[spec.name] = nn.Parameter(torch.empty(width))
        if not self._embedded():
            self.null["start"] = nn.Parameter(torch.empty(width))

    def forward(
        self, conditions: Mapping[str, Tensor], num_samples: int, drop: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """B D.

        A condition that is absent from ``conditions`` is null for the whole batch; ``drop[name]`` (B booleans)
        makes it null for some samples.
        """
        parts = []
        for spec in self._embedded():
            null_BD = self.null[spec.name].expand(num_samples, -1)
            if spec.name not in conditions:
                parts.append(null_BD)
                continue
            embedded_BD = self.embed[spec.name](conditions[spec.name])
            if drop is not None and spec.name in drop:
                embedded_BD = torch.where(drop[spec.name][:, None], null_BD.to(embedded_BD.dtype), embedded_BD)
            parts.append(embedded_BD)
        if not parts:
            return self.null["start"].expand(num_samples, -1)
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def _embedded(self) -> list[ConditionSpec]:
        return [spec for spec in self.specs if spec.embedded]

    def guides(self, conditions: Mapping[str, Tensor]) -> bool:
        """Whether any of these conditions changes what the network gives: guidance needs one."""
        return any(spec.name in conditions for spec in self._embedded())

    def check(self, conditions: Mapping[str, Tensor]) -> None:
        """Raise NextscaleError for an unknown name, a label out of range or a wrong size."""
        check_conditions(self.specs, conditions)


def check_conditions(specs: Sequence[ConditionSpec], conditions: Mapping[str, Tensor]) -> None:
    """Raise NextscaleError for an unknown condition, a label out of range, or a vector of the wrong size."""
    by_name = {spec.name: spec for spec in specs}
    for name, value in conditions.items():
        if name not in by_name:
            raise NextscaleError(unknown("condition", name, by_name))
        spec = by_name[name]
        if spec.kind == "class" and value.numel() and not 0 <= int(value.min()) <= int(value.max()) < spec.size:
            bad = int(value.max()) if int(value.max()) >= spec.size else int(value.min())
            raise NextscaleError(f"{name} {bad} is out of range: this model knows {name}s 0 to {spec.size - 1}")
        if spec.kind == "count" and value.numel() and not 1 <= int(value.min()) <= int(value.max()) <= spec.size:
            bad = int(value.min()) if int(value.min()) < 1 else int(value.max())
            raise NextscaleError(f"{name} {bad} is out of range: it should be from 1 to {spec.size}")
        if spec.kind == "vector" and value.shape[-1] != spec.size:
            raise NextscaleError(f"{name} has {value.shape[-1]} numbers; this model takes {spec.size}")


def resolve_conditions(
    specs: Sequence[ConditionSpec], values: Mapping[str, Any], num_samples: int
) -> dict[str, Tensor]:
    """Tensors with first axis B from what a person names: numbers, class names, vectors; one for all, or one each.

    A class that is not mentioned (or is ``"all"``) goes through all its values in turn; None leaves a condition null.

    Raises:
        NextscaleError: a value that the condition cannot take.
    """
    resolved = {}
    for spec in specs:
        if spec.name not in values or (isinstance(values[spec.name], str) and values[spec.name] == "all"):
            if spec.kind == "class":
                resolved[spec.name] = torch.arange(num_samples) % spec.size
        elif values[spec.name] is not None:
            resolved[spec.name] = _as_tensor(spec, values[spec.name], num_samples)
    check_conditions(specs, resolved)
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
    if spec.kind == "count":
        raise NextscaleError(f"{spec.name} {value!r} should be a whole number from 1 to {spec.size}")
    raise NextscaleError(unknown(spec.name, str(value), spec.names))
