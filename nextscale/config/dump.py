"""Configurations as YAML, with the settings' descriptions if asked; a run's own carries a checksum. No torch here."""

from __future__ import annotations

import hashlib
import re
import textwrap
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from nextscale.config.sections import RunConfig
from nextscale.config.tree import members
from nextscale.config.yamltext import dump_value

CHECKSUM = re.compile(r"^# sha256 of the lines above: ([0-9a-f]{64})\n\Z", re.M)


def dump_config(config: BaseModel, comments: bool = False) -> str:
    """YAML from which ``load_config`` reads an equal configuration; ``comments`` adds the settings' descriptions."""
    values = config.model_dump(mode="json")
    return "".join(_dump_field(config, name, values[name], comments) for name in type(config).model_fields)


def dump_run_config(config: RunConfig) -> str:
    """What a run's ``config.yaml`` holds: every setting, and a checksum, from which ``load_run_config`` sees damage."""
    text = dump_config(config)
    return f"{text}# sha256 of the lines above: {_digest(text)}\n"


def is_changed(text: str) -> bool:
    """Whether a ``config.yaml`` is no longer what its checksum says. Without a checksum, nothing can be said."""
    checksum = CHECKSUM.search(text)
    return checksum is not None and _digest(text[: checksum.start()]) != checksum[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _dump_field(config: BaseModel, name: str, value: Any, comments: bool) -> str:
    field = type(config).model_fields[name]
    member = getattr(config, name)
    note = ""
    if comments:
        text = field.description or (_first_paragraph(type(member)) if isinstance(member, BaseModel) else "")
        choices = _choices(field.annotation)
        text = " ".join(filter(None, [text, f"One of: {', '.join(choices)}." if choices else ""]))
        note = "".join(f"# {line}\n" for line in textwrap.wrap(text, 100))
    if isinstance(member, BaseModel) and type(member).model_fields:
        inner = "".join(_dump_field(member, key, value[key], comments) for key in type(member).model_fields)
        gap = "\n" if comments else ""
        return f"{gap}{note}{name}:\n{textwrap.indent(inner, '  ')}"
    return note + dump_value(name, value)


def _first_paragraph(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").strip().split("\n\n")[0].split())


def _choices(annotation: Any) -> list[str]:
    """The literal words that a field accepts (it may also accept None or other types)."""
    words = [word for m in members(annotation) if get_origin(m) is Literal for word in get_args(m)]
    return [str(word) for word in words]
