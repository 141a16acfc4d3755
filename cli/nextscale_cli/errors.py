"""What the user sees when something goes wrong: one line and an exit code; a traceback only on request."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from nextscale.errors import NextscaleError, NextscaleWarning, one_line

TRACEBACK = "NEXTSCALE_TRACEBACK"
MAX_LINE = 2000
PATH_ERRORS = {
    getattr(errno, name)
    for name in ("EACCES", "EEXIST", "EISDIR", "ELOOP", "ENAMETOOLONG", "ENOENT", "ENOTDIR", "EPERM", "EROFS")
}


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn exceptions into one line on stderr and an exit code.

    The exit code is 2 for errors that the user can fix, 1 for a full disk or an internal error, 128 + the signal for
    Ctrl-C and SIGTERM, and 141 (128 + SIGPIPE, as a shell reports it) if the reader of the output went away. With
    ``NEXTSCALE_TRACEBACK=1``, errors show a traceback instead.
    """
    try:
        with _one_line_warnings():
            yield
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _discard_output()
        sys.exit(141)
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1" or _is_from_typer(error):
            raise
        from nextscale.training.signals import Interrupted

        code = 2 if isinstance(error, NextscaleError) or _names_a_path(error) else 1
        try:
            _report(error, "" if isinstance(error, Interrupted) else "error: ")
        except BrokenPipeError:  # nobody reads it
            code = 141
        except OSError:  # it cannot be written, which is no reason for another error
            pass
        _discard_output()
        sys.exit(error.exit_code if isinstance(error, Interrupted) else code)


def _report(error: Exception, prefix: str) -> None:
    if isinstance(error, NextscaleError) and error.rows:
        from nextscale_cli.tables import print_rows

        print_rows(error.rows, stderr=True)
    print(f"{prefix}{describe(error)}", file=sys.stderr, flush=True)


class _Once(logging.Filter):
    """Lets the same notice through once: a command may open its data several times."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        notice = record.name, record.getMessage()
        repeated = notice in self._shown
        self._shown.add(notice)
        return not repeated


def show_notices_once() -> None:
    """Leave out what was logged before. Nothing else is set up: logging prints warnings on stderr by itself."""
    if logging.lastResort is not None:
        logging.lastResort.addFilter(_Once())


def open_standard_streams() -> None:
    """Let streams that the caller has closed (``>&-``) lead nowhere.

    Otherwise the next file to be opened would take their number, and what is printed would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))


def _discard_output() -> None:
    """Let streams that cannot be written to lead nowhere. The interpreter would try again at exit, and complain."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # it may not be a file
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Within the block, a ``NextscaleWarning`` is one line on stderr; others are shown as before."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, NextscaleWarning):
            print(f"warning: {message}", file=sys.stderr)
        else:
            before(message, category, *rest, **named)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def describe(error: BaseException) -> str:
    """Describe an exception in one line."""
    text = one_line(" ".join(str(error).split()))
    text = text if len(text) <= MAX_LINE else f"{text[: MAX_LINE // 2]} ... {text[-MAX_LINE // 2 :]}"
    if isinstance(error, NextscaleError):
        return text
    if isinstance(error, OSError) and _is_full(error):
        return f"the disk is full{f': {error.filename} was not written' if error.filename else ''}"
    if _names_a_path(error):
        return text.split("] ", 1)[-1]
    from nextscale.plugins import place_in_plugin

    place = place_in_plugin(error)
    where = f" in {place}" if place else ""
    return f"internal: {type(error).__name__}: {text}{where} (set {TRACEBACK}=1 for the traceback)"


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _names_a_path(error: BaseException) -> bool:
    """Whether a path that the user gave cannot be used as it should be."""
    return isinstance(error, OSError) and error.errno in PATH_ERRORS and error.filename is not None


def _is_from_typer(error: Exception) -> bool:
    """Typer's own exceptions (wrong usage, Exit, Abort), which it prints itself. It vendors click or depends on it."""
    return any(base.__module__.split(".")[0] in ("typer", "click") for base in type(error).__mro__)
