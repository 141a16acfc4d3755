"""Train a ladder: one tokenizer and one token cache for all of it, then every run, in one or several processes.

A ladder's folder holds::

    tokenizer/          a run: the shared tokenizer, and the tokens of the data
    runs/NAME/          the runs, each with scaling.json once it is finished
    report.json plots/  what ``scaling fit`` makes of them

The same command again goes on: finished runs are left as they are, others continue from their checkpoints.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

import torch

from nextscale import plugins
from nextscale.config.run import load_run_config, run_config_model
from nextscale.config.sections import RunConfig
from nextscale.errors import ConfigError, NextscaleError, TrainingError
from nextscale.hub import run_folder
from nextscale.scaling.ladder import Rung
from nextscale.scaling.results import RECORD, final_losses
from nextscale.storage.files import write_json_atomic
from nextscale.storage.models import has, load_tokenizer, save_run, stored_config
from nextscale.training.cache import are_written, place_of_tokens
from nextscale.training.check import check_tokenizer
from nextscale.training.resume import changed
from nextscale.training.run import train
from nextscale.training.signals import Interrupted
from nextscale.training.tokenize import tokenize

PASSING = (
    "training.threads",
    "training.device",
    "training.init",
    "training.tensorboard",
    "training.transformer.cache_folder",
    "preset",
)
"""Settings that may differ when a ladder goes on: where it is computed, and where things are."""


class Job(Protocol):
    def result(self) -> str | None: ...


class Executor(Protocol):
    """Where runs are trained: ``concurrent.futures`` and submitit (Slurm) have this interface."""

    def submit(self, fn: Callable[..., Any], /, *arguments: Any) -> Job: ...


class _Here:
    """Trains in this process."""

    def submit(self, fn: Callable[..., Any], /, *arguments: Any) -> Job:
        done: Future[Any] = Future()
        done.set_result(fn(*arguments))
        return done


def train_ladder(
    base: RunConfig,
    rungs: Sequence[Rung],
    out: Path,
    tokenizer: str | None = None,
    processes: int = 1,
    executor: Executor | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> None:
    """Train what is not yet trained.

    Args:
        base: the settings of the shared tokenizer and of everything that the rungs have in common.
        tokenizer: a run whose tokenizer is taken instead of training one: a folder, or ``hf:OWNER/NAME``.
        processes: how many runs are trained side by side on this machine. They share its cores.
        executor: where runs are trained instead, such as ``slurm_executor``.

    Raises:
        ConfigError: ``out`` holds a ladder with other settings.
        DataError, CheckpointError, TrainingError: as ``training.run.train``; also if runs failed, once all were tried.
        Interrupted: after SIGINT or SIGTERM, once checkpoints are saved.
    """
    base, rungs = _on_threads(base, processes if executor is None else 1), list(rungs)
    _check_same(base, out / "tokenizer")
    for rung in rungs:
        _check_same(_config_of(rung, base, out), out / "runs" / rung.name)
    _share_tokenizer(base, out / "tokenizer", tokenizer)
    left = [rung for rung in rungs if not (out / "runs" / rung.name / RECORD).exists()]
    log(f"{len(rungs) - len(left)} of {len(rungs)} runs are finished")
    # The dearest first, so that no process is left alone with it at the end. One process gives results early instead.
    ordered = left if processes == 1 and executor is None else left[::-1]
    with _executor(processes, executor) as where:
        jobs = []
        for rung in ordered:
            config = _config_of(rung, base, out)
            folder, values = out / "runs" / rung.name, config.model_dump(mode="json")
            if isinstance(where, _Here):
                log(f"{rung.name}: {rung.blocks:,} parameters, {rung.tokens:,} tokens, {rung.steps:,} steps")
            jobs.append((rung, where.submit(train_rung, values, folder, out / "tokenizer", rung.record())))
        failed = []
        for rung, job in jobs:
            error = job.result()
            if error or not isinstance(where, _Here):
                log(f"{rung.name}: {error or 'finished'}")
            failed += [f"{rung.name}: {error}"] if error else []
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(rungs)} runs are not finished ({failed[0]}): the same command tries them again"
        )


def train_rung(values: dict[str, Any], folder: Path, shared: Path, record: dict[str, Any]) -> str | None:
    """Train one run, and note its losses. Returns what went wrong, in one line.

    Raises:
        Interrupted: as ``training.run.train``, in the process that was interrupted.
    """
    try:
        config = run_config_model(values["modality"]).model_validate(values)
        if not has(folder, "transformer"):
            cached = config.training.transformer.cache and not config.training.transformer.corrupt
            train(config, folder, "transformer", "auto", tokens=shared if cached else None)
        write_json_atomic(folder / RECORD, {**record, **final_losses(folder)})
    except Interrupted as error:
        if multiprocessing.parent_process() is None:
            raise
        return str(error)
    except NextscaleError as error:
        return str(error)
    return None


def slurm_executor(folder: Path, options: dict[str, Any]) -> Executor:
    """Submits runs as jobs to Slurm (extra: slurm).

    Args:
        folder: for the logs of jobs; it must be on a file system that all machines see.
        options: parameters of submitit's ``AutoExecutor``, such as ``timeout_min`` or ``slurm_partition``; ``cluster``
            is ``slurm``, or ``local`` for jobs on this machine (by default whichever there is).

    Raises:
        NextscaleError: submitit is not installed, or refuses an option.
    """
    try:
        import submitit  # type: ignore[import-not-found]
    except ImportError:
        raise NextscaleError("--slurm needs submitit: pip install 'nextscale[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(folder=str(folder), cluster=options.get("cluster"))
        executor.update_parameters(**{name: value for name, value in options.items() if name != "cluster"})
    except Exception as error:  # submitit raises errors of many kinds for options that it does not know
        raise NextscaleError(f"--slurm: submitit refuses {options}: {error}") from None
    return executor


@contextmanager
def _executor(processes: int, given: Executor | None) -> Iterator[Executor]:
    if given is not None or processes == 1:
        yield given or _Here()
        return
    # A forked process would inherit torch's threads, which do not survive the fork.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, initializer=_end_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """A process whose parent was killed would hold its run's lock forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _on_threads(base: RunConfig, processes: int) -> RunConfig:
    """``base`` with this process's cores shared out, unless it says how many threads to use."""
    if processes == 1 or base.training.threads is not None:
        return base
    threads = max(1, torch.get_num_threads() // processes)
    return base.model_copy(update={"training": base.training.model_copy(update={"threads": threads})})


def _config_of(rung: Rung, base: RunConfig, out: Path) -> RunConfig:
    init = str((out / "tokenizer").resolve())
    training = rung.config.training.model_copy(update={"init": init, "threads": base.training.threads, "minutes": None})
    return rung.config.model_copy(update={"training": training})


def _check_same(config: RunConfig, folder: Path) -> None:
    """Refuse to go on with other settings than those that a folder was begun with."""
    if not (folder / "config.yaml").exists():
        return
    different = [change for change in changed(load_run_config(folder), config) if change[0] not in PASSING]
    if different:
        key, before, now = different[0]
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        raise ConfigError(f"{folder} was begun with {key}={before}, not {now}{more}: name another folder with --out")


def _share_tokenizer(base: RunConfig, folder: Path, given: str | None) -> None:
    """Train the tokenizer that all runs share, or take that of a run, and cache the tokens of the data."""
    if not has(folder, "tokenizer"):
        if given is None:
            train(base, folder, "tokenizer", "auto")
        else:
            run = run_folder(given)
            check_tokenizer(run, plugins.modality(base.modality).open_data(base.data), base)
            save_run(folder, base, stored_config(run, "tokenizer")["description"], load_tokenizer(run))
    stage = base.training.transformer
    splits = [place_of_tokens(folder, base, name) for name in ("train", "validation")]
    if stage.cache and not stage.corrupt and not all(map(are_written, splits)):
        tokenize(folder, [f"training.transformer.cache_folder={stage.cache_folder or 'null'}"])
