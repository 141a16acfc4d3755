"""Ctrl-C and SIGTERM ask training to save and stop; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from nextscale.errors import NextscaleError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(NextscaleError):
    """Training was asked to stop and has saved. ``exit_code`` is the shell's convention, 128 + signal."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def interruptible() -> Iterator[None]:
    """For code that has nothing to save: SIGINT and SIGTERM raise ``Interrupted`` at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        _leave("interrupted", number)

    with _handling(stop):
        yield


class InterruptFlag:
    """A context in which SIGINT and SIGTERM only set a flag, so that training can save before it stops."""

    def __init__(self) -> None:
        self.raised = False
        self.signal = signal.SIGINT

    def __enter__(self) -> InterruptFlag:
        self._context = _handling(self._note)
        self._context.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._context.__exit__(*exc)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.raised, self.signal = True, signal.Signals(number)

    def leave_if_raised(self) -> None:
        """Leave at once if a signal came; for code that continues by itself when it is called again."""
        if self.raised:
            _leave("interrupted", self.signal)

    def stop(self, stage: str, step: int, again: str) -> NoReturn:
        """``again`` is what continues from here, on the command line."""
        _leave(f"interrupted: {stage} saved at step {step}", self.signal, again)


def _leave(what: str, number: int, again: str = "--resume auto") -> NoReturn:
    """The first process reports what happened; the others exit silently."""
    # Imported here because it imports torch, and the command line imports this module for its errors.
    from nextscale import distributed

    if not distributed.is_main():
        sys.exit(128 + number)
    raise Interrupted(f"{what}; continue with {again}", 128 + number)


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals with ``handler``. Only the main thread may set handlers, and only it is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
