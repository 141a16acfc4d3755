"""Keep paths of the author's computer out of what is shared."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from nextscale.errors import ConfigError

T = TypeVar("T", bound=BaseModel)
NOT_SHARED = "not shared (a path on the computer of its author)"
"""Stands for a path. It is the value of the setting that named it, so that no setting is missing."""
_SCHEME = re.compile(r"(?!(?i:file|local):)[A-Za-z][\w+.-]*:(?=[^/~]|//)")
"""What a value starts with that is no path: ``hf:``, ``https://``; but ``file://``."""


def is_local_path(value: Any) -> bool:
    """Whether a setting's value is a path, and not the name of something built in or on the network."""
    if isinstance(value, str):
        return not _SCHEME.match(value) and (os.sep in value or value.startswith("~") or value in (".", ".."))
    return isinstance(value, Path)


def without_paths(section: T) -> tuple[T, set[str]]:
    """The settings with ``NOT_SHARED`` in the place of paths, and the paths. Defaults are no secret, and stay.

    Raises:
        ConfigError: a setting can be nothing else than its path.
    """
    found: set[str] = set()
    cleaned = _section(section, found)
    try:
        return type(section).model_validate(cleaned.model_dump()), found
    except ValueError as error:
        first = " ".join(str(error).split())[:300]
        raise ConfigError(f"the settings cannot be shared without their paths: {first}") from None


def _section(section: T, found: set[str]) -> T:
    changes = {}
    for name, field in type(section).model_fields.items():
        value, default = getattr(section, name), field.get_default(call_default_factory=True)
        if value != default:
            cleaned = _value(value, found)
            # A file that must exist can be no other text.
            changes[name] = default if isinstance(value, Path) else cleaned
    return section.model_copy(update=changes)


def _value(value: Any, found: set[str]) -> Any:
    if isinstance(value, BaseModel):
        return _section(value, found)
    if isinstance(value, Mapping):
        return {key: _value(each, found) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_value(each, found) for each in value)
    if is_local_path(value):
        found.add(str(value))
        return NOT_SHARED
    return value


class Paths:
    """The paths that may be in a run's records, to be taken out of them."""

    def __init__(self, paths: Iterable[str | Path]) -> None:
        given = {str(path) for path in paths}
        full = {os.path.abspath(os.path.expanduser(path)) for path in given}
        known = {*given, *full, *map(os.path.realpath, full), os.path.expanduser("~")}
        # As they are, and as JSON and HTML write them; the longest first, because one may begin another.
        forms = {form for path in known if _tells(path) for form in (path, json.dumps(path)[1:-1], html.escape(path))}
        self.forms = sorted(forms, key=len, reverse=True)

    def removed(self, text: str) -> str:
        for form in self.forms:
            text = text.replace(form, NOT_SHARED)
        return text

    def first_in(self, text: str) -> str | None:
        return next((form for form in self.forms if form in text), None)


def _tells(path: str) -> bool:
    """Whether the path says something about its computer, and is not a part of any other text."""
    return os.sep in path and len(path.strip("./~")) > 1
