"""Write so that a reader never sees half a file; read so that damage gives one clear line.

Everything is written under a temporary name beside its target (``.NAME.partial``), flushed to the disk, and
renamed. A process killed in between leaves the target as it was, and a temporary file that the next write removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nextscale.errors import CheckpointError, NextscaleError, TrainingError

T = TypeVar("T", bound=BaseModel)
MAX_JSON_BYTES = 256 << 20
"""A longer JSON file is refused unread: what this package stores is far shorter."""


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path to write to; when the block succeeds, the file there is moved to ``path``.

    Raises:
        TrainingError: the disk is full, or ``path`` is not writable. A file at ``path`` is then untouched.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_name(path)
        try:
            yield partial
            fsync(partial)
            os.replace(partial, path)
        except BaseException:
            remove(partial)
            raise
        fsync(path.parent)


def write_text_atomic(path: Path | str, text: str) -> None:
    """Write UTF-8 text; raises as ``replacing`` does."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json_atomic(path: Path | str, obj: Any) -> None:
    """Write indented JSON; raises as ``write_text_atomic`` does."""
    write_text_atomic(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def save_tensors_atomic(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    written: Callable[[Path], None] | None = None,
) -> None:
    """Write tensors as one safetensors file. Shared and strided tensors are stored as plain copies.

    ``written`` is called with the path of the complete file before it takes its place.

    Raises:
        TrainingError: the disk is full, or ``path`` is not writable.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_name(path)
        try:
            # In a folder, because safetensors creates temporary files of its own beside the file it writes.
            remove(partial)
            partial.mkdir()
            save_tensors(partial / path.name, tensors, metadata)
            if written is not None:
                written(partial / path.name)
            os.replace(partial / path.name, path)
        finally:
            remove(partial)
        fsync(path.parent)


def load_tensors(path: Path | str) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU.

    The tensors are memory-mapped: copy any that must outlive the file or be changed.

    Raises:
        CheckpointError: the file is missing, truncated or otherwise damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        return load_file(path)
    except Exception as error:  # a header may hold anything; what torch makes of it raises errors of many kinds
        raise CheckpointError(f"{path} is damaged or not a safetensors file ({one_line(error)})") from None


def tensor_metadata(path: Path | str) -> dict[str, str]:
    """The texts in the header of a safetensors file; raises as ``load_tensors``."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file ({one_line(error)})") from None


def read_json(path: Path | str) -> Any:
    """What a JSON file holds. Numbers are finite, and no key occurs twice.

    Raises:
        CheckpointError: the file is missing, no regular file, too long, or anything but such JSON in UTF-8.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} is missing")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ValueError(f"{size:,} bytes are too many")
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {one_line(error)}") from None


def parse_json(data: bytes | str, finite: bool = True) -> Any:
    """Strict JSON in UTF-8. With ``finite=False``, infinities and NaN are accepted as Python writes them.

    Raises:
        ValueError: it is anything else. The message is one line.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        read = _finite if finite else float
        parsed = json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_float=read, parse_constant=read)
        if "\\ud" in text.lower():  # half a character, which could not be written or printed again
            json.dumps(parsed, ensure_ascii=False).encode()
        return parsed
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ValueError(f"it is not UTF-8 text ({error.reason})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON from line {error.lineno}, column {error.colno} on ({error.msg})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _integer(text: str) -> int:
    if len(text) > 1000:
        raise ValueError(f"{text[:40]} is too large a number")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def stored_settings(section: type[T], values: Any, path: object) -> T:
    """``values``, read from ``path``, checked by a pydantic model.

    Raises:
        CheckpointError: they hold what this version does not know or accept.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    except Exception as error:  # a validator met a value that its author did not think of
        what = one_line(error)
    raise CheckpointError(f"{path} was written by another version, or is damaged: {what}")


def json_digest(obj: Any) -> str:
    """sha256 of the JSON as it reads back, so that it does not matter how the values were written."""
    plain = json.loads(json.dumps(obj))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


# The parts that these functions, checkpoints and the token cache are made of.


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file in place and flush it; raises OSError like any write."""
    plain = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    try:
        save_file(plain, path, dict(metadata) if metadata else None)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
    fsync(path)


def digest(path: Path) -> str:
    """sha256 of a file, as ``sha256sum`` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def replaced_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def replace_folder(partial: Path, target: Path) -> None:
    """Move a finished folder to its place.

    A folder cannot replace another in one step, so the old one is renamed first. ``restore_folder`` brings it back if
    the process is killed in between.
    """
    aside = replaced_name(target)
    if target.exists():
        remove(aside)
        os.rename(target, aside)
    os.rename(partial, target)
    fsync(target.parent)
    remove(aside)


def restore_folder(target: Path) -> None:
    """Undo an interrupted ``replace_folder`` and remove what it left behind."""
    aside = replaced_name(target)
    if not aside.exists():
        return
    if target.exists():
        remove(aside)
    else:
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(aside, target)


@contextlib.contextmanager
def writing(path: Path, hint: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn a failure to write ``path`` into a one-line error; ``hint()`` adds what is still intact."""
    try:
        yield
    except NextscaleError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else f"cannot write: {error.strerror or one_line(error)}"
        raise TrainingError(f"{reason}: {path} was not saved{hint() if hint else ''}") from None


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
