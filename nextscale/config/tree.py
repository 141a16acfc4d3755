"""The tree of settings behind a configuration: layers merged along the pydantic model, with the source of each value.

``config.run`` decides which layers there are. This module handles YAML, dotted keys and error messages.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nextscale.errors import ConfigError, unknown

Key = tuple[str, ...]


class _Raw(str):
    """An override's value as typed; its meaning depends on the field that it sets."""


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys. PyYAML silently takes the last: a section written twice would lose half its settings."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes each sequence on one line."""


def _represent_string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Double-quotes text with unusual line breaks, which escapes them: PyYAML would fold them and read back others."""
    style = '"' if any(line_break in text for line_break in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_string)
_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def dump_value(name: str, value: Any) -> str:
    """``name: value``, ending in a newline."""
    return yaml.dump({name: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)


def read_yaml(file: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: it is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
        settings = yaml.load(text, _Loader)
    except FileNotFoundError:
        raise ConfigError(f"configuration file {file} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read configuration file {file}: {reason}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {_yaml_problem(error)}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{file} should hold 'key: value' lines, not {_shown(settings)}")
    return settings


def parse_override(text: str) -> tuple[Key, str]:
    """``a.b=value`` -> ``(("a", "b"), "value")``

    Raises:
        ConfigError: no ``=``, or an empty key.
    """
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals:
        raise ConfigError(f"{text!r} is not an override: it should read key=value")
    if not all(path):
        raise ConfigError(f"{text!r} is not an override: its key {key!r} is empty or has an empty part")
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
            self._merge(self.model, self.values, settings, (), f"override {text}")

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
            section = _section(field.annotation)
            if isinstance(value, _Raw):
                value = _parse(value, field.annotation, source)
            if section is None or (value is None and type(None) in members(field.annotation)):
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
                    wrong = f"{'.'.join(here)} is a section and cannot be {_shown(value)} (its keys: {known})"
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
                path, model = (*path, str(part)), _section(field.annotation)
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
        value = "" if isinstance(first["input"], (Mapping, BaseModel)) else f" = {_shown(first['input'])}"
        return f"{name}{value} is wrong: {what}{origin}" if name else f"{what}{origin}"


def members(annotation: Any) -> list[Any]:
    """The alternatives of a type: ``int | Annotated[str, ...] | None`` -> ``[int, str, NoneType]``."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for argument in get_args(annotation) for member in members(argument)]
    return [annotation]


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds; None for a plain value, or for a choice of sections (which pydantic resolves)."""
    sections = [m for m in members(annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
    return sections[0] if len(sections) == 1 else None


def _parse(raw: str, annotation: Any, source: str) -> Any:
    """An override's value, parsed as YAML. Text fields keep their text, and sequence fields also take ``1,2,3``."""
    kinds = members(annotation)
    section = _section(annotation)
    if section is not None and getattr(section, "shorthand", None) and not raw.lstrip().startswith("{"):
        return _Raw(raw)  # the shorthand's field parses it
    if raw == "None" and type(None) in kinds:
        return None  # descriptions say None; YAML says null
    try:
        value = yaml.load(raw, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {_yaml_problem(error)}") from error
    textual = all(kind in (str, Path, type(None)) for kind in kinds)
    if textual and value is not None and not isinstance(value, str):
        return str(raw)
    sequences = [kind for kind in kinds if (get_origin(kind) or kind) in (tuple, list, set, frozenset)]
    if not sequences or str in kinds:
        return value
    if isinstance(value, str) and "," in value:
        try:
            return [yaml.load(part, _Loader) for part in value.split(",") if part.strip()]
        except yaml.YAMLError as error:
            raise ConfigError(f"{source} is not valid YAML: {_yaml_problem(error)}") from error
    if set(kinds) <= {*sequences, type(None)} and value is not None and not isinstance(value, (list, dict)):
        return [value]
    return value


def _contains_raw(value: Mapping) -> bool:
    return any(isinstance(v, _Raw) or (isinstance(v, Mapping) and _contains_raw(v)) for v in value.values())


def _unknown_key(root: type[BaseModel], model: type[BaseModel], here: Key, value: Any, source: str) -> str:
    path = here
    while isinstance(value, Mapping) and len(value) == 1:
        ((key, value),) = value.items()
        path = (*path, str(key))
    described = unknown("key", here[-1], model.model_fields)
    hint = described.removeprefix(f"unknown key {here[-1]!r}")
    elsewhere = [".".join(found) for found in _find(root, path[-1])]
    if "did you mean" not in hint and elsewhere:
        hint = f"; did you mean {' or '.join(elsewhere)}?{hint}"
    prefix = "" if source.startswith("override") else f"{source}: "
    return f"{prefix}unknown key {'.'.join(path)}{hint}"


def _find(model: type[BaseModel], name: str, path: Key = ()) -> list[Key]:
    """Every path in the configuration that ends in a key of this name."""
    found = [(*path, name)] if name in model.model_fields else []
    for key, field in model.model_fields.items():
        section = _section(field.annotation)
        if section is not None:
            found += _find(section, name, (*path, key))
    return found


def _from(source: str) -> str:
    return source if source.startswith("override") else f"from {source}"


def _shown(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark is not None else ""
    return " ".join(f"{where}{getattr(error, 'problem', None) or error}".split())
