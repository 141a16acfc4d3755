"""One writer per run folder. The operating system holds the lock, so a killed process frees it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import warnings
from pathlib import Path
from types import TracebackType

from nextscale.errors import NextscaleWarning, TrainingError

NAME = ".lock"
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class RunLock:
    """Holds ``RUN/.lock`` from the first ``acquire`` until the end of the block::

        with RunLock(folder, "trained") as lock:
            lock.acquire()

    ``doing`` completes the message that another process gets: "RUN is being trained by process PID on HOST".
    """

    def __init__(self, folder: Path, doing: str) -> None:
        self.folder, self.path, self.doing = folder, folder / NAME, doing
        self.file: int | None = None

    def acquire(self) -> None:
        """Take the lock, unless it is already held by this object. The folder must exist.

        Where nothing can be written there is nothing to lock, so a read-only folder passes. A file system without
        locks passes with a warning.

        Raises:
            TrainingError: another process (or thread) holds the lock.
        """
        while self.file is None:
            try:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                if error.errno in READ_ONLY:
                    return
                raise TrainingError(f"cannot lock {self.folder}: {error.strerror}") from None
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(file)
                os.close(file)
                raise TrainingError(
                    f"{self.folder} is being {holder}: wait until it has ended, or stop it first"
                ) from None
            except OSError as error:
                os.close(file)
                reason = f"{self.folder} cannot be locked ({error.strerror})"
                warnings.warn(f"{reason}: make sure that no other process writes it", NextscaleWarning, stacklevel=2)
                return
            if _is_at(file, self.path):
                self.file = file
            else:  # the process that held it has removed the file in between
                os.close(file)
        record = {"doing": self.doing, "pid": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, json.dumps(record).encode(), 0)

    def release(self) -> None:
        if self.file is not None:
            if _is_at(self.file, self.path):
                self.path.unlink()
            os.close(self.file)
            self.file = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _holder(file: int) -> str:
    """``trained by process 123 on host``, as far as the lock file says."""
    try:
        record = json.loads(os.pread(file, 4096, 0))
        return f"{record['doing']} by process {int(record['pid'])} on {record['host']}"
    except (ValueError, KeyError, TypeError):
        return "trained by another process"


def _is_at(file: int, path: Path) -> bool:
    """Whether the open ``file`` is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
