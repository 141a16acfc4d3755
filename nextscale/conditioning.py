"""Named conditions, such as class labels and vectors, each with a null for classifier-free guidance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from nextscale.errors import NextscaleError, unknown


class ConditionSpec(BaseModel):
    """One conditioning input. ``class``: integers below ``size``; ``vector``: B x ``size`` floats. The network sees
    (vector - ``offset``) / ``scale``, so users give numbers in the units of the data.

    ``count``: integers from 1 to ``size``, the size of a sample. Only the tokenizer reads it (``initial_state``). It is
    not embedded, so the network knows about it only through the inputs. If it is not given, it is drawn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Literal["class", "vector", "count"] = "class"
    size: PositiveInt
    names: tuple[str, ...] = ()
    offset: tuple[float, ...] = ()
    scale: tuple[PositiveFloat, ...] = ()

    @model_validator(mode="after")
    def _units_fit(self) -> ConditionSpec:
        for name in ("offset", "scale"):
            if len(getattr(self, name)) not in (0, self.size if self.kind == "vector" else 0):
                raise ValueError(f"{self.name}: {name} should be {self.size} numbers, and only vectors have one")
        return self

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
            if spec.offset or spec.scale:
                units = [spec.offset or (0.0,) * spec.size, spec.scale or (1.0,) * spec.size]
                self.register_buffer(f"units_{spec.name}", torch.tensor(units), persistent=False)
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
            value = conditions[spec.name]
            if spec.offset or spec.scale:
                offset, scale = self.get_buffer(f"units_{spec.name}")
                value = (value - offset) / scale
            embedded_BD = self.embed[spec.name](value)
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
        if spec.kind == "vector":
            if value.shape[-1] != spec.size:
                raise NextscaleError(f"{name} has {value.shape[-1]} numbers; this model takes {spec.size}")
            if not bool(value.isfinite().all()):
                raise NextscaleError(f"{name} has numbers that are not finite")
        elif value.numel():
            for number in torch.stack(value.aminmax()).tolist():  # one transfer, where the value is on a GPU
                _check_range(spec, number)


def resolve_conditions(
    specs: Sequence[ConditionSpec], values: Mapping[str, Any], num_samples: int
) -> dict[str, Tensor]:
    """Turn the values a user gives, one for all samples or one per sample, into tensors with first axis B.

    - Text, as on the command line, is never read as YAML. For a class, an exact class name wins, then an index that is
      no name (``010`` is 10). ``all`` takes every class in turn, as if the class were not given. ``null`` or ``None``
      leaves any condition null. ``a,b`` is a list, unless the whole text is a class name. The numbers of a vector are
      separated by commas (``[[1,2],[3,4]]``: one vector per sample; ``1,2`` if a vector is one number).
    - Numbers are always an index (or a count), even where a class has this number for its name. Booleans are refused.
    - None leaves a condition null. A class that is not given cycles through all its values.

    Raises:
        NextscaleError: a value that the condition cannot take.
    """
    resolved = {}
    for spec in specs:
        value = values.get(spec.name)
        named = isinstance(value, str) and value in spec.names
        every = spec.name not in values or (isinstance(value, str) and value == "all" and not named)
        if spec.kind == "class" and every:
            value = torch.arange(num_samples) % spec.size
        elif isinstance(value, str) and not named:
            value = None if value in ("null", "None") else _from_text(spec, value)
        if value is not None:
            resolved[spec.name] = _as_tensor(spec, value, num_samples)
    check_conditions(specs, resolved)
    return resolved


def _from_text(spec: ConditionSpec, text: str) -> Any:
    """A text that is not a class name as a class or count (still text), a list of these, or a vector."""
    if not text.strip():
        raise NextscaleError(f"{spec.name} is empty: give a value, or null for none")
    inner = text.strip()
    is_list = inner.startswith("[") and inner.endswith("]")
    inner = inner[1:-1].strip() if is_list else text
    if spec.kind != "vector":
        parts = inner.split(",")
        return [part if part in spec.names else part.strip() for part in parts] if is_list or len(parts) > 1 else text
    rows = [row.strip(" [") for row in inner.rstrip(" ]").split("]")]
    vectors = [[_number(spec, part) for part in row.lstrip(" ,[").split(",")] for row in rows]
    return vectors if inner.startswith("[") else vectors[0]


def _number(spec: ConditionSpec, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        wanted = "a number" if spec.size == 1 else f"{spec.size} numbers separated by commas"
        raise NextscaleError(f"{spec.name}: {_shown(text)} is not a number; give {wanted}") from None


def _as_tensor(spec: ConditionSpec, value: Any, number: int) -> Tensor:
    """One value per sample, from one for all samples or one per sample."""
    if spec.kind == "vector":
        return _as_vectors(spec, value, number)
    try:
        entries: list[Any] = [value] * number if isinstance(value, str) or np.ndim(value) == 0 else list(value)
    except (TypeError, ValueError):
        raise NextscaleError(f"{spec.name} {_shown(value)} is not one value, or one per sample") from None
    if len(entries) != number:
        raise NextscaleError(f"{len(entries)} values of {spec.name} for {number} samples: give one, or one per sample")
    return torch.tensor([_class_number(spec, entry) for entry in entries], dtype=torch.long)


def _as_vectors(spec: ConditionSpec, value: Any, number: int) -> Tensor:
    try:
        vector = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise NextscaleError(f"{spec.name} {_shown(value)} is not a vector of {spec.size} numbers") from None
    if vector.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise NextscaleError(f"{spec.name} {_shown(value)} should be numbers, not {str(vector.dtype)[6:]}")
    vector = vector.float().reshape(1) if vector.dim() == 0 else vector.float()
    if spec.size == 1 and vector.shape == (number,):  # one number per sample
        vector = vector[:, None]
    vector = vector.expand(number, -1) if vector.dim() == 1 else vector
    if vector.shape != (number, spec.size):
        each = "a number" if spec.size == 1 else f"{spec.size} numbers"
        raise NextscaleError(
            f"{spec.name} has the shape {tuple(vector.shape)}: give {each}, or {each} for each of the {number} samples"
        )
    return vector


def _class_number(spec: ConditionSpec, value: Any) -> int:
    """The index of a class, or a count, from a number or a text."""
    if isinstance(value, str):
        if value in spec.names:
            return spec.names.index(value)
        number = int(value) if re.fullmatch(r"[-+]?[0-9]{1,18}", value) else None
    else:
        number = _whole(value)
    if spec.kind == "count":
        if number is None:
            raise NextscaleError(f"{spec.name} {_shown(value)} should be a whole number from 1 to {spec.size}")
        return _check_range(spec, number)
    if number is None:
        raise NextscaleError(unknown(spec.name, value if isinstance(value, str) else _shown(value), spec.names))
    return _check_range(spec, number)


def _whole(value: Any) -> int | None:
    """A whole number, given as any kind of number; None if it is something else, such as a boolean."""
    if isinstance(value, bool | np.bool_) or getattr(value, "dtype", None) == torch.bool:
        return None
    try:
        number = int(value)
        return number if bool(number == value) and abs(number) < 2**63 else None
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def _check_range(spec: ConditionSpec, number: int) -> int:
    first, last = (1, spec.size) if spec.kind == "count" else (0, spec.size - 1)
    if not first <= number <= last:
        raise NextscaleError(_out_of_range(spec, number))
    return number


def _out_of_range(spec: ConditionSpec, number: int) -> str:
    if spec.kind == "count":
        return f"{spec.name} {number} is out of range: it should be between 1 and {spec.size}"
    return f"{spec.name} {number} is out of range: this model knows {spec.name}s 0 to {spec.size - 1}"


def _shown(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
