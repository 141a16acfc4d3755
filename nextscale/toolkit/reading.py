"""Reading files that may be anything: one line for whatever goes wrong, and limits checked before memory is taken."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import IO

import numpy as np

from nextscale.config.sections import LimitsConfig
from nextscale.errors import DataError, NextscaleError
from nextscale.storage.files import one_line

UNSUSPICIOUS = 2**28
"""Arrays of up to this many bytes may be packed as densely as they like: they do no harm."""


@contextmanager
def reading(path: Path | str, what: str = "file", hint: str = "") -> Iterator[None]:
    """Turn whatever a reader raises into a ``DataError`` that names the file.

    Args:
        what: the kind of thing that is read: ``image``, ``video``, ``GraphML file``.
        hint: what would be right, added to the message.

    Raises:
        DataError: the block raised anything but a ``NextscaleError``.
    """
    try:
        yield
    except NextscaleError:
        raise
    except Exception as error:  # damaged files raise every kind of exception in the libraries that read them
        raise DataError(f"cannot read {what} {shown_path(path)} ({_reason(error)}){hint}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = one_line(error)
    return text if len(text) <= 200 else f"{text[:197]}..."


def shown_path(path: Path | str) -> str:
    """A path as messages show it: very long ones are cut, and line breaks and the like are escaped."""
    text = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(path))
    return text if len(text) <= 200 else f"{text[:80]}...{text[-80:]}"


def check_file(path: Path | str) -> Path:
    """The path of a regular file.

    Raises:
        DataError: nothing is there, or something else: a folder, a named pipe, a device.
    """
    path = Path(path)
    with reading(path):
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise DataError(f"{shown_path(path)} is {_kind(mode)}, not a file")
    return path


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return name
    return "something else"


def exists(path: Path | str) -> bool:
    """Whether something is at ``path``; False too where the path is no possible name."""
    try:
        os.stat(path)
    except (OSError, ValueError):
        return False
    return True


def read_text(path: Path | str, limits: LimitsConfig | None = None) -> str:
    """The text of a UTF-8 file, without a byte order mark; UTF-16 is read where a byte order mark announces it.

    Raises:
        DataError: no regular file, unreadable, too large, or not text; the message names the line.
    """
    limits = limits or LimitsConfig()
    path = check_file(path)
    with reading(path, "text file"):
        size = path.stat().st_size
        if size > limits.text_bytes:
            raise DataError(
                f"{shown_path(path)} has {size:,} bytes of text, more than data.limits.text_bytes={limits.text_bytes:,}"
            )
        data = path.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{shown_path(path)}, line {line}, is not UTF-8 text: save the file as UTF-8") from None


def read_arrays(
    path: Path | str, wanted: Callable[[str], bool] | None = None, limits: LimitsConfig | None = None
) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name, or of an .npy file under the name "".

    Args:
        wanted: says by name which arrays are read; None reads all. Others may be large, or pickled.

    Raises:
        DataError: no regular file, not such a file, damaged, an array of Python objects, or one that is too large.
    """
    limits = limits or LimitsConfig()
    path = check_file(path)
    with reading(path, ".npz file", hint=": write it with numpy.savez"):
        with path.open("rb") as file:
            magic = file.read(6)
        if magic == b"\x93NUMPY":
            with path.open("rb") as file:
                size = path.stat().st_size
                _check_header(file, path, "array", limits, size, size)
            return {"": np.load(path, allow_pickle=False)}
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            chosen = [name for name in names if wanted is None or wanted(name.removesuffix(".npy"))]
            arrays = {}
            for name in chosen:
                info, key = archive.getinfo(name), name.removesuffix(".npy")
                with archive.open(name) as file:
                    _check_header(file, path, key, limits, info.file_size, info.compress_size)
                with archive.open(name) as file:
                    arrays[key] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def array_names(path: Path | str) -> list[str]:
    """Names of all arrays of an .npz file, for messages."""
    with reading(path, ".npz file"), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _check_header(file: IO[bytes], path: Path, name: str, limits: LimitsConfig, size: int, packed: int) -> None:
    """Compare what an array announces with the limits, and with how many bytes there are."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise DataError(f"{shown_path(path)}: {name} holds Python objects, which are never unpickled: save numbers")
    announced = int(np.prod([int(side) for side in shape], dtype=object)) * dtype.itemsize if shape else dtype.itemsize
    check_announced(f"{shown_path(path)}: {name} of {_by(shape)}", announced, packed, limits)
    if announced > size:
        raise DataError(f"{shown_path(path)}: {name} is truncated, {size:,} bytes of the {announced:,} it announces")


def check_announced(what: str, announced: int, packed: int, limits: LimitsConfig) -> None:
    """Refuse an array that announces more bytes than the limits allow, before memory is taken for it.

    Args:
        what: the array, as the message names it.
        announced: its bytes once unpacked.
        packed: its bytes in the file.

    Raises:
        DataError: too many bytes, or many more than a file of this size can honestly hold.
    """
    if announced > limits.array_bytes:
        raise DataError(
            f"{what} announces {announced:,} bytes, more than data.limits.array_bytes={limits.array_bytes:,}"
        )
    if announced > UNSUSPICIOUS and announced > limits.unpacked_times * packed:
        raise DataError(
            f"{what} announces {announced:,} bytes in {packed:,} of the file, more than "
            f"data.limits.unpacked_times={limits.unpacked_times} times as many"
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def as_classes(
    labels: np.ndarray, where: str, names: np.ndarray | None = None, limits: LimitsConfig | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of any kind as positions (N int64) in class names.

    With ``names``, labels are positions in them. Without, classes are the labels that occur, in their order (numbers
    by value), and are named by them: labels need not begin at 0, and no class is made for a number that does not occur.

    Raises:
        DataError: labels that are no integers or texts, not one per sample, or without a name; too many classes.
    """
    limits = limits or LimitsConfig()
    labels = np.asarray(labels)
    if labels.dtype == object and None in labels.tolist():
        raise DataError(
            f"{where}: row {labels.tolist().index(None)} has no label (data.labels=false leaves labels out)"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iubUS":
        raise DataError(f"{where} must be N integers or texts, not {labels.dtype} of shape {_by(labels.shape)}")
    if names is None:
        found, positions = np.unique(labels, return_inverse=True)
        if len(found) > limits.classes:
            raise DataError(
                f"{where} holds {len(found):,} different labels, more than data.limits.classes={limits.classes:,}: "
                "data.labels=false leaves them out"
            )
        return positions.reshape(-1).astype(np.int64), _texts(found)
    names = np.asarray(names)
    if names.ndim != 1:
        raise DataError(f"{where}: class names must be N texts, not an array of shape {_by(names.shape)}")
    if labels.dtype.kind not in "iub":
        raise DataError(f"{where} must be integers, positions in the {len(names)} class names, not {labels.dtype}")
    wrong = (labels < 0) | (labels >= len(names))
    if wrong.any():
        raise DataError(f"{where} has label {labels[wrong][0]}; there are class names for 0 to {len(names) - 1}")
    texts = _texts(names)
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise DataError(f"{where}: two classes are called {twice!r}: each needs a name of its own")
    return labels.astype(np.int64), texts


def _texts(values: np.ndarray) -> tuple[str, ...]:
    return tuple(
        value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values.tolist()
    )


def fingerprint(parts: Mapping[str, object]) -> str:
    """16 hex digits over what identifies the rows of a split: names and sizes of files (``file_print``), labels, or the
    content of arrays. Neither absolute paths nor times belong in it: data that was moved or copied is the same data."""
    hasher = hashlib.sha256()
    for name, part in sorted(parts.items()):
        hasher.update(f"\n{name}:".encode())
        if isinstance(part, np.ndarray):
            hasher.update(f"{part.dtype}{part.shape}".encode())
            hasher.update(np.ascontiguousarray(part).view(np.uint8).data if part.size else b"")
        else:
            hasher.update(repr(part).encode())
    return hasher.hexdigest()[:16]


def file_print(path: Path | str) -> str:
    """16 hex digits over a file's size and content, cheap enough for many thousand files.

    Files of up to 32 KiB are read whole. Of larger ones, 4 KiB at the start, in the middle and at the end are: a change
    elsewhere that keeps the size goes unnoticed, which compressed formats make unlikely.

    Raises:
        DataError: no regular file, or it cannot be read.
    """
    with reading(path), check_file(path).open("rb", buffering=0) as file:
        return content_print(file)


def content_print(file: IO[bytes] | RawIOBase) -> str:
    """As ``file_print``, of a file that is open."""
    size = file.seek(0, os.SEEK_END)
    part = 4096
    starts = [0, size // 2, size - part] if size > 8 * part else range(0, size, part)
    parts = [str(size).encode()]
    for start in starts:
        file.seek(start)
        parts.append(file.read(part) or b"")
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:16]
