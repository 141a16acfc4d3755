"""The tree of settings behind a configuration: layers merged along the pydantic model, with the source of each value.

``config.run`` decides which layers there are, and ``config.yamltext`` reads YAML. This module handles dotted keys, what
the value of an override means for its field, and error messages.

The value of ``KEY=VALUE`` is YAML, except where the setting is text (a name, a path, a list of names): such a setting
takes the text as it is typed, blanks, quotes and ``#`` included. Where it may be None, ``null`` and ``None`` mean None
(a file of this name is ``./null``).
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nextscale.config.yamltext import MAX_DEPTH, parse_yaml, shown
from nextscale.errors import ConfigError, unknown

Key = tuple[str, ...]
NONE = ("null", "None")
"""How an override writes None: as YAML, or as descriptions of settings do."""


class _Raw(str):
    """An override's value as typed; its meaning depends on the field that it sets."""


def parse_override(text: str) -> tuple[Key, str]:
    """``a.b=value`` -> ``(("a", "b"), "value")``

    Raises:
        ConfigError: no ``=``, or an empty key.
    """
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals:
        raise ConfigError(f"{shown(text)} is not an override: it should read key=value")
    if not all(path):
        raise ConfigError(f"{shown(text)} is not an override: its key {shown(key)} is empty or has an empty part")
    if len(path) > MAX_DEPTH:
        raise ConfigError(f"{shown(text)} is not an override: its key has more than {MAX_DEPTH} parts")
    return path, value


class Tree:
    """Settings for ``model``, collected layer by layer.

    Errors are collected until ``validate``, which reports the first and counts the rest.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self.model = model
        self.values: dict[str, Any] = {}
        self.sources: dict[Key, str] = {}
        self.problems: list[str] = []

    def merge(self, settings: Mapping[str, Any], source: str) -> None:
        """Add ``settings`` as a layer on top. Sections are merged; values, including sequences, are replaced."""
        self._merge(self.model, self.values, settings, (), source)

    def override(self, overrides: Sequence[str]) -> None:
        """Add ``key=value`` texts as layers on top, in the given order."""
        for text in overrides:
            path, value = parse_override(text)
            settings: Any = _Raw(value)
            for key in reversed(path):
                settings = {key: settings}
            source = text if len(text) <= 200 else f"{text[:197]}..."
            self._merge(self.model, self.values, settings, (), f"override {source}")

    def validate(self) -> Any:
        """An instance of the model.

        Raises:
            ConfigError: a layer has an error.
        """
        problems = self.problems
        if not problems:
            try:
                return self.model.model_validate(self.values)
            except ValidationError as error:
                problems = self._explain(error)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigError(problems[0] + more)

    def _merge(self, model: type[BaseModel], into: dict[str, Any], settings: Mapping, path: Key, source: str) -> None:
        for key, value in settings.items():
            key = str(key)
            here = (*path, key)
            field = model.model_fields.get(key)
            if field is None:
                self.problems.append(_unknown_key(self.model, model, here, value, source))
                continue
            section = section_of(field.annotation)
            if isinstance(value, _Raw):
                value = _parse(value, field.annotation, source)
            if section is None or (value is None and is_optional(field.annotation)):
                if isinstance(value, Mapping) and _contains_raw(value):
                    self.problems.append(f"{'.'.join(here)} is a single value and has no keys ({source})")
                    continue
                into[key] = value
                self.sources[here] = source
                continue
            shorthand = getattr(section, "shorthand", None)
            if value is None and not source.startswith("override"):
                continue  # a section of a file in which every line is commented out
            if not isinstance(value, Mapping):
                if shorthand is None or value is None:
                    known = ", ".join(section.model_fields)
                    wrong = f"{'.'.join(here)} is a section and cannot be {shown(value)} (its keys: {known})"
                    self.problems.append(f"{wrong} ({_from(source)})")
                    continue
                value = {shorthand: value}
            if not isinstance(into.get(key), dict):
                # A field's default may differ from that of its class, and setting one key must not reset the others.
                default = field.get_default(call_default_factory=True)
                set_ = default.model_dump(exclude_unset=True) if isinstance(default, BaseModel) else {}
                into[key] = set_
            self._merge(section, into[key], value, here, source)

    def _explain(self, error: ValidationError) -> list[str]:
        """One line per wrong setting, in the order of the model's fields."""
        groups: dict[Key, list[tuple[tuple[int | str, ...], ErrorDetails]]] = {}
        for detail in error.errors(include_url=False, include_context=False):
            path, model = (), self.model
            for part in detail["loc"]:
                field = model.model_fields.get(str(part)) if model is not None else None
                if field is None:
                    break
                path, model = (*path, str(part)), section_of(field.annotation)
            groups.setdefault(path, []).append((detail["loc"][len(path) :], detail))
        return [self._explain_setting(path, details) for path, details in groups.items()]

    def _explain_setting(self, path: Key, details: list[tuple[tuple[int | str, ...], ErrorDetails]]) -> str:
        # A field of several types has one error per type. The most useful error is the one nested deepest in the value.
        def index(rest: tuple[int | str, ...]) -> str:
            return "".join(f"[{part}]" for part in rest if isinstance(part, int))

        deepest = max(index(rest).count("[") for rest, _ in details)
        details = [(rest, detail) for rest, detail in details if index(rest).count("[") == deepest]
        rest, first = details[0]
        details = [(r, detail) for r, detail in details if index(r) == index(rest)]

        name = ".".join(path) + index(rest)
        source = next((self.sources[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.sources), None)
        origin = f" ({_from(source)})" if source else ""
        if first["type"] == "missing":
            return f"{name} is required{origin}"
        allowed: dict[str, None] = {}
        for _, detail in details:
            message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            message = message.replace("Input should be ", "should be ", 1)
            allowed[message.split(", unable to parse")[0]] = None
        what = " or ".join(allowed).replace(" or should be ", " or ")
        value = "" if isinstance(first["input"], (Mapping, BaseModel)) else f" = {shown(first['input'])}"
        return f"{name}{value} is wrong: {what}{origin}" if name else f"{what}{origin}"


def members(annotation: Any) -> list[Any]:
    """The alternatives of a type: ``int | Annotated[str, ...] | None`` -> ``[int, str, NoneType]``."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for argument in get_args(annotation) for member in members(argument)]
    return [annotation]


def is_optional(annotation: Any) -> bool:
    """Whether None is one of the alternatives of a type."""
    return type(None) in members(annotation)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds; None for a plain value, or for a choice of sections (which pydantic resolves)."""
    sections = [m for m in members(annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
    return sections[0] if len(sections) == 1 else None


def _parse(raw: str, annotation: Any, where: str) -> Any:
    """An override's value for a field of this type: text as it is typed, or YAML. Sequences also take ``1,2,3``."""
    kinds = members(annotation)
    section = section_of(annotation)
    if section is not None and getattr(section, "shorthand", None):
        return _Raw(raw)  # the shorthand's field parses it
    if raw in NONE and is_optional(annotation):
        return None
    if _is_text(annotation):
        if not raw:
            raise ConfigError(f"{where} sets nothing: give a text after the =")
        return str(raw)
    if raw in _words(kinds):  # a word such as no, which YAML would take for False
        return str(raw)
    sequences = [kind for kind in kinds if (get_origin(kind) or kind) in (tuple, list, set, frozenset)]
    texts = bool(sequences) and all(_holds_text(kind) for kind in sequences)
    if texts and not raw.lstrip().startswith("["):
        return [part.strip() for part in raw.split(",") if part.strip()]
    value = parse_yaml(raw, where, texts)
    if not sequences or str in kinds:
        return value
    if isinstance(value, str) and "," in value:
        return parse_yaml(f"[{', '.join(part for part in value.split(',') if part.strip())}]", where)
    if set(kinds) <= {*sequences, type(None)} and value is not None and not isinstance(value, (list, dict)):
        return [value]
    return value


def _is_text(annotation: Any) -> bool:
    """Whether a field takes nothing but text: ``str``, ``Path``, or None of these."""
    kinds = set(members(annotation)) - {type(None)}
    return bool(kinds) and kinds <= {str, Path}


def _holds_text(sequence: Any) -> bool:
    """``tuple[str, ...]`` and the like."""
    arguments = [argument for argument in get_args(sequence) if argument is not ...]
    return bool(arguments) and all(map(_is_text, arguments))


def _words(kinds: Sequence[Any]) -> list[str]:
    """The words among the alternatives of a type: those of its Literals."""
    return [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind) if isinstance(word, str)]


def _contains_raw(value: Mapping) -> bool:
    return any(isinstance(v, _Raw) or (isinstance(v, Mapping) and _contains_raw(v)) for v in value.values())


def _unknown_key(root: type[BaseModel], model: type[BaseModel], here: Key, value: Any, source: str) -> str:
    path = here
    while isinstance(value, Mapping) and len(value) == 1 and len(path) < MAX_DEPTH:
        ((key, value),) = value.items()
        path = (*path, str(key))
    described = unknown("key", here[-1], model.model_fields)
    hint = described.removeprefix(f"unknown key {here[-1]!r}")
    elsewhere = [".".join(found) for found in _find(root, path[-1])]
    # The same name elsewhere is a better guess than a similar name here.
    if elsewhere and (path == here or "did you mean" not in hint):
        hint = f"; did you mean {' or '.join(elsewhere)}? {hint[hint.index('(known') :]}"
    prefix = "" if source.startswith("override") else f"{source}: "
    return f"{prefix}unknown key {'.'.join(path)}{hint}"


def _find(model: type[BaseModel], name: str, path: Key = ()) -> list[Key]:
    """Every path in the configuration that ends in a key of this name."""
    found = [(*path, name)] if name in model.model_fields else []
    for key, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            found += _find(section, name, (*path, key))
    return found


def _from(source: str) -> str:
    return source if source.startswith("override") else f"from {source}"
