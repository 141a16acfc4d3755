"""What the user sees when something goes wrong: one line and an exit code; a traceback only on request."""

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
        # Otherwise the interpreter would try to flush stdout at exit, and complain.
        with suppress(OSError):  # stdout may not be a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1" or _is_from_typer(error):
            raise
        from nextscale.training.signals import Interrupted

        if isinstance(error, Interrupted):  # no error: the run was saved, and the message says how to continue
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
    """Describe an exception in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, NextscaleError):
        return text
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{f': {error.filename} was not written' if error.filename else ''}"
    return f"internal: {type(error).__name__}: {text} (set {TRACEBACK}=1 for the traceback)"


def _is_from_typer(error: Exception) -> bool:
    """Typer's own exceptions (wrong usage, Exit, Abort), which it prints itself. It vendors click or depends on it."""
    return any(base.__module__.split(".")[0] in ("typer", "click") for base in type(error).__mro__)
