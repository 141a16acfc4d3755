"""What the user sees when something goes wrong: one line and an exit code, never a traceback unless asked for."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from nextscale.errors import NextscaleError, NextscaleWarning

TRACEBACK = "NEXTSCALE_TRACEBACK"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn exceptions into one line on stderr and an exit code.

    2 for what the user can mend, 1 for a full disk or an internal error, 128 + the signal for Ctrl-C and SIGTERM,
    141 (128 + SIGPIPE, as a shell reports it) for a reader that went away. With ``NEXTSCALE_TRACEBACK=1`` errors
    show where they were raised.
    """
    try:
        with _one_line_warnings():
            yield
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Or the interpreter would try to flush what nobody reads, and complain.
        with suppress(OSError):  # stdout may be no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1" or _is_typers(error):
            raise
        from nextscale.training.signals import Interrupted

        if isinstance(error, Interrupted):  # it has saved, and says how to go on: no error
            print(error, file=sys.stderr)
            sys.exit(error.exit_code)
        if isinstance(error, NextscaleError) and error.rows:
            from nextscale_cli.tables import print_rows

            print_rows(error.rows, stderr=True)
        print(f"error: {describe(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, NextscaleError) else 1)


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
    """An exception in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, NextscaleError):
        return text
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{f': {error.filename} was not written' if error.filename else ''}"
    return f"internal: {type(error).__name__}: {text} (set {TRACEBACK}=1 for the traceback)"


def _is_typers(error: Exception) -> bool:
    """Typer's own: wrong usage, Exit and Abort, which it prints itself. (It carries click inside, or depends on it.)"""
    return any(base.__module__.split(".")[0] in ("typer", "click") for base in type(error).__mro__)
