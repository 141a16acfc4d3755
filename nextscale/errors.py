"""Errors for the user: each is one line that says what was wrong, where, and what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


class NextscaleError(Exception):
    """Base of every error the user can act on. The command line prints it as one line and exits with 2.

    ``rows`` are records of details that the line only counts. The command line prints them as a table above the line.
    """

    def __init__(self, message: str = "", rows: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(one_line(message))
        self.rows = rows


def one_line(text: str) -> str:
    """``text`` without line breaks, such as names of files may hold; words of thousands of characters are cut."""
    return _LONG.sub(lambda word: f"{word[0][:150]}...{word[0][-150:]}", " ".join(text.splitlines()))


_LONG = re.compile(r"\S{800,}")


class ConfigError(NextscaleError):
    """A preset, configuration file or ``key=value`` override is wrong."""


class DataError(NextscaleError):
    """A data source is missing, empty, unreadable or inconsistent."""


class CheckpointError(NextscaleError):
    """A run, checkpoint or token cache is missing, damaged, or does not match the settings or data."""


class PluginError(NextscaleError):
    """A plugin is missing or broken, or clashes with another plugin."""


class HubError(NextscaleError):
    """The hub, or a repository on it, cannot be reached, read or written."""


class RemoteError(NextscaleError):
    """What lies behind a URL cannot be reached, read or written."""


class TrainingError(NextscaleError):
    """Training cannot continue (loss not finite, disk full)."""


class NextscaleWarning(UserWarning):
    """A warning for the user about something that does not stop the command. The command line prints it as one line."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """``unknown preset 'digts'; did you mean 'digits'? (known: digits, fashion)``"""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    name = name if len(name) <= 200 else f"{name[:197]}..."
    return f"unknown {kind} {name!r}{hint} (known: {', '.join(known) or 'none'})"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it was raised for."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
