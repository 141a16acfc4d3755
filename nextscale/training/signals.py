"""Ctrl-C and SIGTERM ask training to save and stop; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import NoReturn

from nextscale.errors import NextscaleError


class Interrupted(NextscaleError):
    """Training was asked to stop and has saved. ``exit_code`` is the shell's convention, 128 + signal."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class InterruptFlag:
    """A context in which SIGINT and SIGTERM only raise a flag."""

    def __init__(self) -> None:
        self.raised = False
        self.signal = signal.SIGINT
        self._before: dict[int, object] = {}

    def __enter__(self) -> InterruptFlag:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.raised, self.signal = True, signal.Signals(number)

    def stop(self, stage: str, step: int) -> NoReturn:
        raise Interrupted(
            f"interrupted: {stage} saved at step {step}; continue with --resume auto", 128 + self.signal
        )
