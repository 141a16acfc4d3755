"""Named conditions, such as class labels and vectors, each with a null for classifier-free guidance."""

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

    ``count``: integers from 1 to ``size``, the size of a sample. Only the tokenizer reads it (``initial_state``). It is
    not embedded, so the network knows about it only through the inputs. If it is not given, it is drawn.
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
    """Embeds named conditions and adds them up to one vector per sample: the transformer's start token and adaLN input.

    Every condition has a learned null, used when the condition is dropped in training and for the unconditional half
    of guidance (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598). If there are no conditions at all, the vector
    is a single learned start.
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
        """B D: the sum of the embedded conditions.

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
        """Whether any of these conditions changes the network's output. Guidance has no effect otherwise."""
        return any(spec.name in conditions for spec in self._embedded())

    def check(self, conditions: Mapping[str, Tensor]) -> None:
        """Raise NextscaleError for an unknown name, a label out of range, or a vector of the wrong size."""
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
            raise NextscaleError(f"{name} {bad} is out of range: it should be between 1 and {spec.size}")
        if spec.kind == "vector" and value.shape[-1] != spec.size:
            raise NextscaleError(f"{name} has {value.shape[-1]} numbers; this model takes {spec.size}")


def resolve_conditions(
    specs: Sequence[ConditionSpec], values: Mapping[str, Any], num_samples: int
) -> dict[str, Tensor]:
    """Turn the values a user gives (numbers, class names, vectors; one for all samples or one per sample) into tensors
    with first axis B.

    A class that is not given (or is ``"all"``) cycles through all its values; None leaves a condition null.

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
    """One value per sample, from one for all samples or one per sample."""
    if spec.kind == "vector":
        vector = torch.as_tensor(value, dtype=torch.float32)
        vector = vector.expand(number, -1) if vector.dim() == 1 else vector
        if vector.shape != (number, spec.size):
            raise NextscaleError(
                f"{spec.name} has the shape {tuple(vector.shape)}: give {spec.size} numbers, or {spec.size} for each "
                f"of the {number} samples"
            )
        return vector
    entries: list[Any] = [value] * number if isinstance(value, str) or np.ndim(value) == 0 else list(value)
    if len(entries) != number:
        raise NextscaleError(f"{len(entries)} values of {spec.name} for {number} samples: give one, or one per sample")
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
