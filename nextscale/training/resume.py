"""What a resumed run may change: settings that would change nothing, or mix two courses of training, are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nextscale.config.run import load_run_config
from nextscale.config.sections import RunConfig
from nextscale.errors import ConfigError
from nextscale.storage.checkpoint_folder import latest_checkpoint
from nextscale.storage.models import has

HARMLESS = (
    "preset",
    "training.device",
    "training.tensorboard",
    "training.shard",
    "training.workers",
    "training.transformer.cache_folder",
)
"""Where it is computed, what is recorded, and where things are; where the settings once came from."""


def check_resumed(config: RunConfig, folder: Path, stages: Sequence[str]) -> list[str]:
    """Compare the settings of a run with those that it resumes with.

    Args:
        config: the settings that it resumes with.
        stages: those that are asked for, of ``tokenizer``, ``transformer`` and ``scorer``.

    Returns:
        one line for each setting that is other from now on, or that changes nothing.

    Raises:
        ConfigError: every stage is trained, so that a changed setting would be ignored; or a stage is half trained, and
            the order of its data depends on a changed setting.
    """
    changes = [change for change in changed(load_run_config(folder), config) if change[0] not in HARMLESS]
    left = [stage for stage in stages if not has(folder, stage)]
    notes = []
    for name, before, now in changes:
        if not left:
            what = f"the {' and '.join(stages)} of {folder} {'are' if len(stages) > 1 else 'is'} trained"
            raise ConfigError(
                f"{name}={now} (was {before}) would change nothing: {what}; {_cure(name, now, folder, stages)}"
            )
        drawn_otherwise = name.startswith("sampling.") and name != "sampling.candidates"
        if drawn_otherwise and "scorer" in left and _half_trained(folder, "scorer"):
            raise ConfigError(
                f"{name}={now} (was {before}) does not fit {folder}: its scorer is half trained on what is drawn with "
                f"the other; leave it out, or remove {folder / 'checkpoints' / 'scorer'} first"
            )
        for stage in ("tokenizer", "transformer", "scorer"):
            own = name.startswith(f"training.{stage}.")
            if stage not in left:
                if own and has(folder, stage):
                    notes.append(f"{name}={now} (was {before}) changes nothing: the {stage} is trained")
            elif _half_trained(folder, stage):
                if name in ("seed", f"training.{stage}.batch_size"):
                    raise ConfigError(
                        f"{name}={now} does not fit {folder}: its {stage} is half trained with {before}, and the order "
                        "of its data depends on it; leave it out, or train another run with --out"
                    )
                if own:
                    notes.append(f"{name}={now} from now on (was {before})")
    return notes


def _half_trained(folder: Path, stage: str) -> bool:
    return latest_checkpoint(folder / "checkpoints" / stage) is not None


def _cure(name: str, now: Any, folder: Path, stages: Sequence[str]) -> str:
    section = name.split(".")[0]
    if "scorer" in stages and section in ("scorer", "sampling"):
        return f"to train a scorer with it, remove {folder / 'scorer'} and {folder / 'checkpoints' / 'scorer'} first"
    if name.startswith(("training.transformer.", "training.scorer.")):
        return f"to train on with it, remove {folder / name.split('.')[1]} first"
    if section == "sampling":
        return f"commands that draw samples take it: nextscale sample {folder} {name.removeprefix('sampling.')}={now}"
    if section == "data":
        return f"train another run with --out (if data was only moved, name its new place in {folder / 'config.yaml'})"
    return "train another run with --out"


def changed(before: RunConfig, now: RunConfig) -> list[tuple[str, Any, Any]]:
    """Dotted name, old and new value of each setting that differs."""

    def walk(old: Any, new: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
        if isinstance(old, Mapping) and isinstance(new, Mapping) and old.keys() == new.keys():
            for key in old:
                yield from walk(old[key], new[key], (*path, str(key)))
        elif old != new:
            yield ".".join(path), old, new

    return list(walk(before.model_dump(mode="json"), now.model_dump(mode="json"), ()))
