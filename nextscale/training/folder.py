"""A run's folder: whether it can be trained in, and what training notes there about itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nextscale.config.dump import dump_run_config
from nextscale.config.sections import RunConfig
from nextscale.data import DataSplits
from nextscale.errors import CheckpointError, ConfigError
from nextscale.storage.checkpoint_folder import sound_checkpoint, stage_of
from nextscale.storage.files import write_json_atomic, write_text_atomic, writing
from nextscale.storage.lock import RunLock
from nextscale.storage.models import has
from nextscale.training.environment import describe_data, describe_environment
from nextscale.training.resume import check_resumed


class RunFolder:
    """The folder that a run is trained in.

    Args:
        resume: None begins a new run; ``auto`` goes on, or begins; a path goes on from that checkpoint.
        lock: kept by whoever writes into the folder.
    """

    def __init__(self, path: Path, resume: str | None, lock: RunLock) -> None:
        self.path, self.lock = path, lock
        self.resumes = resume is not None
        self.resume_from = None if resume in (None, "auto") else Path(str(resume))

    @property
    def begun(self) -> bool:
        return (self.path / "config.yaml").exists()

    def holds(self, stage: str) -> bool:
        """Whether the model of a stage is trained."""
        return has(self.path, stage)

    def check(self, config: RunConfig, stages: Sequence[str]) -> list[str]:
        """Whether these stages can be trained here. Returns what of the settings has changed, in lines to show.

        Raises:
            ConfigError, CheckpointError: they cannot.
        """
        folder, path = self.path, self.resume_from
        if not self.resumes:
            refuse_existing_run(folder)
        if folder.exists() and not self.begun and not _is_empty(folder):
            raise ConfigError(f"{folder} exists and is not a run folder: name another with --out")
        if folder.exists():
            self.lock.acquire()  # before anything in it is looked at, which another process might be changing
        if path is not None:
            if stage_of(path) is None or path.resolve().parents[2] != folder.resolve():
                raise CheckpointError(
                    f"{path} is not a checkpoint of run {folder}: name one in {folder}/checkpoints/STAGE/step-NUMBER"
                )
            sound_checkpoint(path)
            stage = stage_of(path)
            if stage not in stages:
                raise ConfigError(f"checkpoint {path} is of stage {stage}: set --stage {stage}")
            if self.holds(str(stage)):
                raise ConfigError(
                    f"the {stage} of {folder} is already trained: to continue its training from {path}, first remove "
                    f"{folder / str(stage)}"
                )
        if "scorer" in stages and not self.holds("transformer"):
            raise CheckpointError(f"{folder} holds no trained transformer: first train one, without --stage scorer")
        if "tokenizer" not in stages and not self.holds("tokenizer") and config.training.init is None:
            raise CheckpointError(f"{folder} holds no trained tokenizer: first train with --stage tokenizer (or all)")
        return list(check_resumed(config, folder, stages)) if self.begun else []

    def prepare(self, config: RunConfig, data: DataSplits) -> None:
        """Make the folder, once configuration and data are checked, so that a mistake leaves none behind."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self.lock.acquire()
        if not self.resumes and not _is_empty(self.path):  # another process began the same run meanwhile
            raise ConfigError(_exists(self.path))
        with writing(self.path):
            (self.path / "samples").mkdir(exist_ok=True)
        if not self.begun:
            self.record(config, data)

    def record(self, config: RunConfig, data: DataSplits) -> None:
        """Note the settings, the environment and the data."""
        write_text_atomic(self.path / "config.yaml", dump_run_config(config))
        write_json_atomic(self.path / "env.json", describe_environment())
        write_json_atomic(self.path / "data.json", describe_data(data))


def refuse_existing_run(folder: Path) -> None:
    """Raise ConfigError if ``folder`` exists, as ``train`` does without ``resume``."""
    if folder.exists():
        raise ConfigError(_exists(folder))


def _exists(folder: Path) -> str:
    return f"run folder {folder} exists: continue it with --resume auto, or name another with --out"


def _is_empty(folder: Path) -> bool:
    """Whether ``folder`` holds no more than a process leaves that was killed before it wrote the configuration."""
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else ["?"]
    return all(name == "samples" or name.startswith(".") for name in names)
