"""The checkpoints in a folder: their names, which are whole, and which are set aside or removed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeInt, ValidationError

from nextscale.errors import CheckpointError
from nextscale.storage.files import (
    digest,
    json_digest,
    parse_json,
    partial_name,
    remove,
    replace_folder,
    restore_folder,
)

STEP = re.compile(r"step-(\d{8,})")


def latest_checkpoint(folder: Path | str) -> Path | None:
    """The finished checkpoint with the highest step, intact or not; None if there is none."""
    folder = Path(folder)
    for leftover in folder.glob(".step-*.replaced"):
        restore_folder(folder / leftover.name.removeprefix(".").removesuffix(".replaced"))
    steps = finished_steps(folder)
    return steps[-1] if steps else None


def finished_steps(folder: Path) -> list[Path]:
    """The finished step checkpoints, oldest first. Changes nothing, so it may look on while a run is trained."""
    return [path for _, path in steps_in(folder)]


def stage_of(path: Path) -> str | None:
    """The STAGE in the path ``RUN/checkpoints/STAGE/step-NUMBER``; None for any other path."""
    resolved = path.resolve()
    if not STEP.fullmatch(resolved.name) or resolved.parent.parent.name != "checkpoints":
        return None
    return resolved.parent.name


def set_aside_later(folder: Path | str, step: int) -> list[Path]:
    """Rename the checkpoints after ``step``, so that they do not mix with those of a run that resumes from there.

    They stay on the disk as ``abandoned-step-XXXXXXXX``. Returns their new paths.
    """
    return [set_aside(path, "abandoned") for number, path in steps_in(Path(folder)) if number > step]


def set_aside(path: Path, why: str) -> Path:
    """Rename a checkpoint to ``WHY-NAME``, over one that already has this name; returns the new path."""
    target = path.with_name(f"{why}-{path.name}")
    remove(target)
    return path.rename(target)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, if it exists. A killed process never leaves half of it under its name."""
    if path.exists():
        partial = partial_name(path)
        remove(partial)
        os.rename(path, partial)
        remove(partial)


def check_checkpoint(path: Path | str) -> dict[str, Any]:
    """Verify every file against the manifest; returns the parsed ``state.json``.

    Raises:
        CheckpointError: ``… is damaged (model.safetensors is truncated: 123 of 456 bytes)``
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        text = (path / "state.json").read_bytes()
    except OSError:
        raise CheckpointError(f"checkpoint {path} is damaged (state.json is missing)") from None
    try:
        body = parse_json(text, finite=False)  # a caller's state may hold infinities
        expected = body.pop("sha256")
        sound = json_digest(body) == expected
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"checkpoint {path} is damaged (state.json is not valid JSON)") from None
    if not sound:
        raise CheckpointError(f"checkpoint {path} is damaged (state.json does not match its checksum)")
    try:
        _Body.model_validate(body)
    except ValidationError:
        raise CheckpointError(f"checkpoint {path} is damaged (state.json is of something else)") from None
    for file, entry in body["files"].items():
        problem = _file_problem(path / file, entry["bytes"], entry["sha256"])
        if problem:
            raise CheckpointError(f"checkpoint {path} is damaged ({file} {problem})")
    return body


class _Optimizer(BaseModel):
    param_groups: list[dict[str, Any]]
    values: dict[str, Any]


class _File(BaseModel):
    bytes: int
    sha256: str


class _Body(BaseModel):
    """``state.json`` without its checksum. Other files of a run have checksums of the same kind."""

    step: NonNegativeInt
    state: dict[str, Any]
    optimizers: dict[str, _Optimizer]
    files: dict[str, _File]


def _file_problem(file: Path, size: int, sha256: str) -> str | None:
    if not file.is_file():
        return "is missing"
    found = file.stat().st_size
    if found != size:
        return f"is {'truncated' if found < size else 'too long'}: {found} of {size} bytes"
    return None if digest(file) == sha256 else "is corrupt: its checksum differs"


def sound_checkpoint(path: Path | str) -> dict[str, Any]:
    """Like ``check_checkpoint``, but the error names another checkpoint that is intact, preferably the one before."""
    path = Path(path)
    try:
        return check_checkpoint(path)
    except CheckpointError as error:
        match = STEP.fullmatch(path.name)
        for step, earlier in reversed(steps_in(path.parent)):
            if earlier == path or (match and step > int(match[1])):
                continue
            try:
                check_checkpoint(earlier)
            except CheckpointError:
                continue
            which = "the one before it" if match else "another"
            raise CheckpointError(f"{error}; {which} is intact: --resume {earlier}") from None
        raise CheckpointError(f"{error}; no other one in {path.parent} is intact") from None


def steps_in(folder: Path) -> list[tuple[int, Path]]:
    """The finished step checkpoints, oldest first."""
    found = ((STEP.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ()))
    return sorted((int(match[1]), path) for match, path in found if match and path.is_dir())


def copy_folder(source: Path, target: Path) -> None:
    """Copy ``source``, whose files never change, to ``target``: as hard links where the file system has them."""
    partial = partial_name(target)
    remove(partial)
    try:
        shutil.copytree(source, partial, copy_function=os.link)
    except OSError:
        remove(partial)
        shutil.copytree(source, partial)
    replace_folder(partial, target)


def clear_leftovers(folder: Path) -> None:
    """Restore or remove what a killed process left behind."""
    for leftover in folder.glob(".*.replaced"):
        restore_folder(folder / leftover.name.removeprefix(".").removesuffix(".replaced"))
    clear_partials(folder)


def clear_partials(folder: Path) -> None:
    """Remove checkpoints that a killed process left half written or half removed."""
    for leftover in folder.glob(".*.partial"):
        remove(leftover)


def last_good(folder: Path) -> str:
    steps = steps_in(folder)
    return f"; the last good checkpoint is {steps[-1][1]}" if steps else "; there is no earlier checkpoint"
