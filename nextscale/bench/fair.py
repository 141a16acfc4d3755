"""Training that compares kinds of model fairly: the same data, time (or steps), seeds and CPU threads for each.

Kinds whose tokenizers are trained alike share one, so that their tokens are the same. A folder holds::

    comparison.json                 what is compared
    tokenizers/KEY/                 runs of the first stage; KEY is a hash of its settings
    KIND-seedN/                     runs of the second stage
    eval-cache/                     shared by the evaluations of all runs
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nextscale import plugins
from nextscale.bench.kinds import Kind
from nextscale.config.run import load_config, load_run_config, make_config
from nextscale.config.sections import RunConfig
from nextscale.errors import ConfigError
from nextscale.storage.files import read_json, write_json_atomic
from nextscale.storage.models import has
from nextscale.training.check import check_run
from nextscale.training.clock import RunClock
from nextscale.training.plan import plan
from nextscale.training.resume import changed
from nextscale.training.run import STAGES, train

RECORD = "comparison.json"
OWN = ("training.init", "training.minutes", "training.transformer.cache_folder")
"""Settings that the comparison sets; beside the seed, which may be given for all kinds."""


@dataclass(frozen=True)
class Effort:
    """How long the stages train: for minutes, or for numbers of steps.

    ``tokenizer_minutes`` (None: as ``minutes``) are per tokenizer, ``minutes`` per kind and seed. ``tokenizer_steps``
    (None: the preset's) and ``steps`` likewise.

    Raises:
        ConfigError: neither minutes nor steps, both, or numbers that are not above 0.
    """

    minutes: float | None = None
    tokenizer_minutes: float | None = None
    steps: int | None = None
    tokenizer_steps: int | None = None

    def __post_init__(self) -> None:
        timed, counted = (self.minutes, self.tokenizer_minutes), (self.steps, self.tokenizer_steps)
        for name, value in asdict(self).items():
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')} {value:g} is wrong: should be a number above 0")
        if (self.minutes is None) == (self.steps is None):
            raise ConfigError("say how long each kind trains: --minutes N (equal time) or --steps N (equal steps)")
        if any(timed) and any(counted):
            raise ConfigError("--minutes and --steps exclude each other, and so do --tokenizer-minutes and --steps")

    def of_stage(self, stage: str) -> tuple[float | None, int | None]:
        """Minutes and steps of a stage; both are None for the steps of the preset."""
        if stage == "transformer":
            return self.minutes, self.steps
        return (None if self.minutes is None else self.tokenizer_minutes or self.minutes), self.tokenizer_steps


@dataclass(frozen=True)
class Base:
    """The settings that all kinds share, named as on the command line of ``nextscale train``."""

    modality: str | None = None
    preset: str | None = None
    file: Path | None = None
    overrides: tuple[str, ...] = ()
    default_modality: str | None = None

    def configure(self, more: Sequence[str] = (), proposal: Mapping[str, Any] | None = None) -> RunConfig:
        """Raises ConfigError, PluginError, as ``load_config``."""
        return load_config(
            self.modality,
            self.preset,
            self.file,
            [*self.overrides, *more],
            default_modality=self.default_modality,
            proposal=proposal,
        )


class Comparison:
    """A folder of runs that are trained alike, except for what their kinds say.

    Whatever can be wrong is found here, before anything is trained. What the folder already holds is not trained again.

    Raises:
        ConfigError, DataError: the settings of a kind are wrong, or ``folder`` holds something else.
    """

    def __init__(
        self, folder: Path, base: Base, kinds: Sequence[Kind], effort: Effort, log: Callable[[str], None]
    ) -> None:
        self.folder, self.base, self.kinds, self.effort, self.log = folder, base, list(kinds), effort, log
        shared = base.configure()
        _refuse_own("the comparison", base.overrides, OWN)
        for kind in kinds:
            _refuse_own(f"kind {kind.name}", kind.settings, (*OWN, "seed"))
        self.seed = shared.seed
        self.record = self._record(shared)
        self.threads = ["training.threads=" + str(self.record["threads"])]
        self._check_kinds()

    def save_record(self) -> None:
        """Make the folder, and note in it what is compared."""
        write_json_atomic(self.folder / RECORD, self.record)

    def train_tokenizer(self, kind: Kind) -> Path:
        """The run that holds the trained tokenizer of a kind."""
        run = self.tokenizer_of(kind)
        return self._train(run, "tokenizer", f"tokenizer of {kind.name}", kind.settings)

    def train(self, kind: Kind, number: int) -> Path:
        """The run of a kind with the ``number``-th seed, counted from 0, trained."""
        tokenizer, run = self.train_tokenizer(kind), self.run_of(kind, number)
        seed = self.seed + number
        init = f"training.init={tokenizer.resolve()}"
        return self._train(run, "transformer", f"{kind.name}, seed {seed}", [*kind.settings, f"seed={seed}", init])

    def run_of(self, kind: Kind, number: int) -> Path:
        return self.folder / f"{kind.name}-seed{self.seed + number}"

    def tokenizer_of(self, kind: Kind) -> Path:
        """Kinds with the same settings of the first stage have the same one."""
        config = self.base.configure(kind.settings)
        told = {
            "data": config.data.model_dump(mode="json"),
            "tokenizer": config.tokenizer.model_dump(mode="json", exclude=set(config.tokenizer.unlearned)),
            "training": config.training.tokenizer.model_dump(mode="json"),
        }
        return self.folder / "tokenizers" / hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]

    def minutes_of(self, run: Path) -> float | None:
        """Minutes that a run was trained for, if it was trained for a time."""
        seconds = RunClock(run, None).before
        return seconds / 60 if seconds else None

    def _train(self, run: Path, stage: str, title: str, settings: Sequence[str]) -> Path:
        if has(run, stage):
            return run
        minutes, steps = self.effort.of_stage(stage)
        self.log(f"{title}: " + (f"{minutes:g} minutes" if minutes else f"{steps or 'the given'} steps"))
        fixed = [*settings, *self.threads, f"training.minutes={minutes or 'null'}"]
        if (run / "config.yaml").exists():
            again = [text for text in settings if text.startswith("training.init=")]  # the folder may have been moved
            config = load_run_config(run, again)
        elif minutes is not None:
            config = plan(partial(_configure, self.base, fixed), minutes, propose=False, stage=stage).config
        else:
            count = [] if steps is None else [f"training.{stage}.steps={steps}"]
            config = self.base.configure([*fixed, *count])
        train(config, run, stage, "auto", counts_caching=False)
        return run

    def _record(self, shared: RunConfig) -> dict[str, Any]:
        """What is compared. That of an earlier call must be the same, except that it may have other kinds."""
        path = self.folder / RECORD
        kinds = {kind.name: list(kind.settings) for kind in self.kinds}
        record = {
            "settings": shared.model_dump(mode="json"),
            "effort": asdict(self.effort),
            "threads": shared.training.threads or torch.get_num_threads(),
            "kinds": kinds,
        }
        if not path.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise ConfigError(f"{self.folder} exists and holds no comparison: name another folder with --out")
            return record
        before = read_json(path)
        try:
            stored = make_config(before["settings"]["modality"], before["settings"], str(path))
            effort, known, threads = dict(before["effort"]), dict(before["kinds"]), int(before["threads"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ConfigError(f"{path} is damaged: name another folder with --out") from None
        if stored.modality != shared.modality:
            different = [("modality", stored.modality, shared.modality)]
        else:
            different = [change for change in changed(stored, shared) if change[0] not in ("preset", "training.device")]
        different += [
            (f"--{name.replace('_', '-')}", effort.get(name), value)
            for name, value in asdict(self.effort).items()
            if effort.get(name) != value
        ]
        different += [
            (f"kind {name}", " ".join(known[name]) or "without settings", " ".join(settings) or "without settings")
            for name, settings in kinds.items()
            if known.get(name, settings) != settings
        ]
        if different:
            name, there, now = different[0]
            what = f"{self.folder} holds another comparison ({name} was {there}, is now {now})"
            raise ConfigError(f"{what}: name another folder with --out")
        return {**record, "threads": threads, "kinds": {**known, **kinds}}

    def _check_kinds(self) -> None:
        opened: dict[str, Any] = {}
        for kind in self.kinds:
            try:
                config = self.base.configure(kind.settings)
                modality, told = plugins.modality(config.modality), config.data.model_dump_json()
                if told not in opened:
                    opened[told] = modality.open_data(config.data)
                check_run(config, modality, opened[told], STAGES)
            except ConfigError as error:
                raise ConfigError(f"kind {kind.name}: {error}") from None


def _refuse_own(whose: str, settings: Sequence[str], own: Sequence[str]) -> None:
    for key in (text.partition("=")[0].strip() for text in settings):
        if key in own:
            raise ConfigError(f"{whose}: {key} is set by the command itself: leave it out")


def _configure(base: Base, fixed: Sequence[str], proposal: Mapping[str, Any] | None) -> RunConfig:
    return base.configure(fixed, proposal)
