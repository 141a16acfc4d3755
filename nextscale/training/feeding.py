"""Reading batches ahead of the step that takes them: in a thread, or in processes that decode and augment.

What a step gets is a function of (seed, position) alone, so it does not matter which process reads it, or when.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor

from torch.utils.data import DataLoader, Dataset

from nextscale.data import Batch
from nextscale.errors import NextscaleError, TrainingError

Read = Callable[[int], list[Batch]]
Steps = Generator[list[Batch], None, None]
"""The micro-batches of each step; closing it ends the thread or the processes."""


class Feed:
    """The micro-batches of one step after another, read ahead; used as a context manager.

    Args:
        read: the micro-batches of a step, on the CPU.
        first: the step to begin with.
        workers: number of processes that read; 0 reads in a thread of this one.

    Attributes:
        waited: seconds that training has spent waiting for batches.
    """

    def __init__(self, read: Read, first: int, workers: int = 0) -> None:
        self.read, self.first, self.workers = read, first, workers
        self.waited = 0.0

    def __enter__(self) -> Feed:
        self.steps = (
            _in_processes(self.read, self.first, self.workers) if self.workers else _in_thread(self.read, self.first)
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self.steps.close()

    def next(self) -> list[Batch]:
        """The micro-batches of the next step.

        Raises:
            DataError: and whatever else reading raises.
            TrainingError: a process that reads was killed.
        """
        began = time.perf_counter()
        batches = next(self.steps)
        self.waited += time.perf_counter() - began
        return batches


def _in_thread(read: Read, first: int) -> Steps:
    with ThreadPoolExecutor(1) as reader:
        upcoming: Future[list[Batch]] = reader.submit(read, first)
        for step in itertools.count(first + 1):
            batches = upcoming.result()
            upcoming = reader.submit(read, step)
            yield batches


def _in_processes(read: Read, first: int, workers: int) -> Steps:
    loader = DataLoader(
        _StepData(read),
        batch_size=None,  # the step's own batches are the items
        sampler=itertools.count(first),  # type: ignore[arg-type] (any iterable, says the manual)
        num_workers=workers,
        multiprocessing_context="fork",  # a source need not be something that can be pickled
        worker_init_fn=_leave_signals_to_the_parent,
    )
    steps = iter(loader)
    try:
        while True:
            try:
                batches, problem = next(steps)
            except RuntimeError as error:
                if "DataLoader worker (pid" not in str(error):  # torch's text for a worker that has died
                    raise
                raise TrainingError(
                    f"a process that reads data has ended ({str(error).splitlines()[0]}): "
                    "set training.workers to fewer, or to 0"
                ) from None
            if problem is not None:
                raise problem
            yield batches
    finally:
        del steps  # ends the processes


class _StepData(Dataset):
    def __init__(self, read: Read) -> None:
        self.read = read

    def __getitem__(self, step: int) -> tuple[list[Batch], NextscaleError | None]:
        try:
            return self.read(step), None
        except NextscaleError as error:  # as it is: the loader would wrap it in a traceback
            return [], error


def _leave_signals_to_the_parent(worker: int) -> None:
    """Training that is asked to stop ends the step that it is at, for which it needs its data."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
