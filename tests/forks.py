"""Processes of their own that start at once.

A new interpreter takes seconds to import torch. These are forked from a server that has imported it, and the parts of
nextscale that most commands need. What they change, such as the environment, ends with them.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

CONTEXT = multiprocessing.get_context("forkserver")
"""Also for ``ProcessPoolExecutor``, in place of the context "spawn"."""
CONTEXT.set_forkserver_preload(
    [
        "nextscale.evaluation",
        "nextscale.training.run",
        "nextscale_cli.main",
        "nextscale_image.modality",
        "torch.distributed.fsdp",
        "torch._dynamo",  # torch's optimizers import it in their first step
    ]
)


def free_port() -> str:
    """A port for processes to meet at. Not one that the system gives out itself: another test's server could be given
    it before they meet, and they would wait for that."""
    while True:
        port = random.Random().randrange(20_000, 32_000)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        return str(port)


class Forked:
    """``python -c CODE ARGUMENTS``, begun. Its output goes to files.

    Args:
        environment: all of it, as for ``subprocess``; None is that of this process. ``PYTHONPATH`` goes first.
        session: whether it leads a process group, which ``os.killpg`` ends.
    """

    def __init__(
        self,
        code: str,
        *arguments: str | Path,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        session: bool = False,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.out, self.err = (Path(self._folder.name) / name for name in ("out", "err"))
        where, told = str(cwd or Path.cwd()), dict(os.environ if environment is None else environment)
        given = (code, [str(each) for each in arguments], where, told, session, str(self.out), str(self.err))
        self._process = CONTEXT.Process(target=_run, args=given)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def running(self) -> bool:
        return self._process.is_alive()

    def printed(self) -> str:
        """What it has printed so far."""
        return self.out.read_text() if self.out.exists() else ""

    def kill(self) -> None:
        self._process.kill()

    def finish(self) -> CompletedProcess[str]:
        """Wait for its end; the exit code is negative for a signal."""
        self._process.join(300)
        code = self._process.exitcode
        assert code is not None, "it has not ended after five minutes"
        texts = [path.read_text(errors="replace") if path.exists() else "" for path in (self.out, self.err)]
        return CompletedProcess([], code, *texts)


def run(
    code: str, *arguments: str | Path, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> CompletedProcess[str]:
    """As ``subprocess.run`` of ``python -c CODE ARGUMENTS``, with the output as text."""
    return Forked(code, *arguments, cwd=cwd, environment=environment).finish()


def _run(
    code: str, arguments: list[str], cwd: str, environment: dict[str, str], session: bool, out: str, err: str
) -> None:
    if session:
        os.setsid()
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.fsync = lambda file: None  # as in conftest.py
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    os.chdir(cwd)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
