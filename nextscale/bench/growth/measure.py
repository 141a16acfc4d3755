"""Time and memory of one kind of prediction on one side, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from nextscale.bench.floor import synchronized
from nextscale.bench.growth.cost import PassCost, paper_memory
from nextscale.bench.growth.kinds import Kind, build_tokenizer, build_transformer
from nextscale.bench.memory import MIB, memory_in_use, peak_memory, reset_peak
from nextscale.config.sections import RunConfig, SamplingConfig, TransformerConfig
from nextscale.memory import release_freed_memory
from nextscale.meta import without_memory
from nextscale.sampling.check import check_sampling
from nextscale.sampling.generate import generate


@dataclass(frozen=True)
class Task:
    """What one row measures. The sections are those of the run's configuration."""

    kind: Kind
    side: int
    axes: int
    tokenizer: Any
    transformer: TransformerConfig
    sampling: SamplingConfig
    seed: int
    batch: int
    repeats: int
    limit: float
    device: str

    @classmethod
    def of(
        cls, config: RunConfig, kind: Kind, side: int, axes: int, batch: int, repeats: int, limit: float, device: str
    ) -> Task:
        sections = config.tokenizer, config.transformer, config.sampling
        return cls(kind, side, axes, *sections, config.seed, batch, repeats, limit, device)


class Sampler:
    """Untrained models of a task, which draw without conditions."""

    def __init__(self, task: Task) -> None:
        torch.manual_seed(task.seed)
        self.task, self.device = task, torch.device(task.device)
        self.tokenizer = build_tokenizer(task.kind, task.tokenizer, task.axes, task.side).to(self.device).eval()
        self.transformer = build_transformer(task.kind, task.transformer, self.tokenizer).to(self.device).eval()

    def draw(self) -> None:
        generators = [torch.Generator(self.device).manual_seed(i) for i in range(self.task.batch)]
        generate(self.tokenizer, self.transformer, self.task.batch, None, self.task.sampling, generators)


def on_paper(task: Task, cost: PassCost) -> dict[str, Any]:
    """Tokens, passes, operations and memory of a row, without drawing it.

    Raises:
        ConfigError: settings that this kind of prediction cannot take.
    """
    with without_memory():
        tokenizer = build_tokenizer(task.kind, task.tokenizer, task.axes, task.side)
        transformer = build_transformer(task.kind, task.transformer, tokenizer)
    schedule = tokenizer.schedule()
    check_sampling(task.sampling, tokenizer, transformer, len(schedule))
    memory = paper_memory(task.kind, cost, [tokenizer, transformer], task.transformer, schedule, task.batch)
    return {
        "kind": task.kind.name,
        "side": task.side,
        "tokens": schedule.length,
        "passes": len(schedule),
        "flops": task.batch * cost.flops(task.kind, schedule),
        "paper_mib": memory / MIB,
    }


def measure(task: Task, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Seconds of a draw (median and each repetition, after one that is dropped), and the peak of memory in MiB.

    ``cpu_seconds`` is the processor time of all threads, which other programs on the machine hardly change. The peak is
    how far the first draw raised the memory above its level before the models were built; None if the system does not
    report it. No further draw begins once the row has taken ``task.limit`` seconds.
    """
    Sampler(replace(task, side=2)).draw()  # what torch sets up once in a process belongs to no side
    release_freed_memory()
    device = torch.device(task.device)
    base = memory_in_use(device)
    reset_peak(device)
    sampler = Sampler(task)
    times: list[float] = []
    cpu: list[float] = []
    used: float | None = None
    begin = clock()
    while len(times) <= task.repeats and (not times or clock() - begin < task.limit):
        start, start_cpu = synchronized(clock, device), time.process_time()
        sampler.draw()
        times.append(synchronized(clock, device) - start)
        cpu.append(time.process_time() - start_cpu)
        if len(times) == 1:
            peak = peak_memory(device)
            if peak is not None and base is not None:
                used = (peak - base) / MIB
    timed = times[1:] or times
    return {
        "seconds": statistics.median(timed),
        "cpu_seconds": statistics.median(cpu[1:] or cpu),
        "times": timed,
        "peak_mib": used,
    }


@contextmanager
def own_process() -> Iterator[Callable[[Callable[..., Any], Task], Any]]:
    """Yields a function that runs another in a process beside this one, always the same one.

    Heap that an earlier kind left behind would hide memory that the next one needs. If the block ends early, for
    instance by Ctrl-C, the process is ended too.
    """
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield lambda function, task: executor.submit(function, task).result()
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _begin() -> None:
    """Leaves Ctrl-C to the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
