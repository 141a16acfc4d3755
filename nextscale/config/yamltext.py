"""YAML from people and from damaged files: bounded in size and depth, and every mistake is a ``yaml.YAMLError``.

It differs from YAML 1.1 where that surprises: keys are always text, dates stay text, ``010`` is no octal number, and
``1:30`` is not 90.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from nextscale.errors import ConfigError

MAX_BYTES = 2**18
"""Of a file or a value: about a second of parsing. The largest sound ones, K x K attention matrices, need a fifth."""
MAX_DEPTH = 32
MAX_VALUES = 20_000
"""Values in one text, with each alias counted as what it stands for."""
MAX_DIGITS = 1000
SCALARS = ("str", "int", "float", "bool", "null")
TAGS = {f"tag:yaml.org,2002:{name}" for name in (*SCALARS, "seq", "map", "merge")}
INTEGER = re.compile(r"[-+]?(0b[01_]*[01]|0x[0-9a-fA-F_]*[0-9a-fA-F]|0|[1-9][0-9_]*)")
FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?|\.[0-9][0-9_]*([eE][-+][0-9]+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
)


class _Loader(yaml.SafeLoader):
    """Refuses what has no meaning as settings, and whatever would take long.

    Duplicate keys are among it: PyYAML silently takes the last, and a section written twice would lose half of its
    settings.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open: list[str | None] = []  # the anchor of each node that contains the current one
        self._sizes: dict[str, int] = {}
        self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            if anchor in self._open:
                raise _refused(f"*{anchor} contains itself", event.start_mark)
            self._count(self._sizes.get(anchor or "", 1), event.start_mark)
            return super().compose_node(parent, index)
        if len(self._open) == MAX_DEPTH:
            raise _refused(f"nested more than {MAX_DEPTH} levels deep", event.start_mark)
        before = self._values
        self._count(1, event.start_mark)
        self._open.append(anchor)
        node = super().compose_node(parent, index)
        self._open.pop()
        if anchor is not None:
            self._sizes[anchor] = self._values - before
        if node is not None and node.tag not in TAGS:
            raise _refused(f"unknown type {node.tag.removeprefix('tag:yaml.org,2002:')!r}", node.start_mark)
        return node

    def _count(self, values: int, mark: Any) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise _refused(f"more than {MAX_VALUES:,} values", mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise _refused("this is no mapping of keys to values", node.start_mark)
        _check_keys(node)
        self.flatten_mapping(node)  # what << names; its keys are seen for the first time
        _check_words(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception:  # a text that its tag does not allow raises whatever Python raises for it
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            raise _refused(f"{_start_of(node.value)!r} is not of type {kind!r}", node.start_mark) from None

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        if len(node.value) > MAX_DIGITS:
            raise _refused(f"a number of more than {MAX_DIGITS} digits", node.start_mark)
        of = self.construct_yaml_int if node.tag.endswith(":int") else self.construct_yaml_float
        return of(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, test) for tag, test in tests if tag.removeprefix("tag:yaml.org,2002:") in ("bool", "null", "merge")]
    for first, tests in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(INTEGER.pattern + r"\Z"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"({FLOAT.pattern})\\Z"), list("-+0123456789."))


class _TextLoader(_Loader):
    """Every value is text, as it was typed."""

    yaml_implicit_resolvers = {}


def _check_words(node: yaml.MappingNode) -> None:
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refused("a key is a word, not a list or a mapping", key.start_mark)


def _check_keys(node: yaml.MappingNode) -> None:
    _check_words(node)
    seen: set[str] = set()
    for key, _ in node.value:
        if key.value in seen:
            raise _refused(f"key {_start_of(key.value)!r} twice", key.start_mark)
        seen.add(key.value)


def _start_of(value: Any) -> str:
    text = value if isinstance(value, str) else "a list or a mapping"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refused(what: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, mark)


def parse_yaml(text: str, where: str, texts: bool = False) -> Any:
    """The value of a YAML text. ``texts``: every scalar in it is text.

    Raises:
        ConfigError: it is not YAML, too large, nested too deeply, or contains itself. ``where`` begins the message.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{where} is too long: {len(text):,} characters of at most {MAX_BYTES:,}")
    try:
        return yaml.load(text, _TextLoader if texts else _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid YAML: {_problem(error)}") from None


def read_yaml(file: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: it is missing, unreadable, not YAML, or not a mapping.
    """
    return parse_mapping(read_text(file), file)


def parse_mapping(text: str, file: str | Path) -> dict[str, Any]:
    """The mapping in the ``text`` of a file; raises as ``read_yaml`` does."""
    settings = parse_yaml(text, str(file))
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{file} should hold 'key: value' lines, not {shown(settings)}")
    return settings


def read_text(file: str | Path) -> str:
    """The text of a configuration file.

    Raises:
        ConfigError: it is missing, unreadable, too large, not a file, or not UTF-8.
    """
    try:
        # Streams such as <(command) lie below /dev. Any other pipe might wait for a writer for ever.
        if stat.S_ISFIFO(os.stat(file).st_mode) and Path(file).parts[:2] != ("/", "dev"):
            raise ConfigError(f"configuration file {file} is a named pipe, not a file")
        with open(file, "rb") as opened:
            data = opened.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"configuration file {file} is too large: at most {MAX_BYTES:,} bytes are read")
        return data.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"configuration file {file} does not exist") from None
    except (OSError, ValueError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        reason = error.strerror if isinstance(error, OSError) else reason
        raise ConfigError(f"cannot read configuration file {file}: {reason}") from None


def shown(value: Any) -> str:
    """A value as messages show it."""
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark is not None else ""
    text = " ".join(f"{where}{getattr(error, 'problem', None) or error}".split())
    return text if len(text) <= 200 else f"{text[:197]}..."


# Writing


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
