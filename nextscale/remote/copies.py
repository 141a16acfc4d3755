"""Local copies of what lies behind URLs, for readers that take files: decoders of videos, zip archives, memory maps.

A copy lies in ``$XDG_CACHE_HOME/nextscale/remote`` (``~/.cache`` by default) and has the names of the original. Each
time it is asked for, the storage's list of files is compared with that of the copy, by size and version, and what
differs is copied again. Why not fsspec's ``filecache``: it renames files, and readers go by names and folders.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from nextscale.errors import RemoteError
from nextscale.remote.folder import RemoteFile, RemoteFolder

BATCH_FILES, BATCH_BYTES = 64, 256 << 20
"""Files that are asked for together. An interrupted copy goes on after the last batch that is whole."""


def local_copy(url: str) -> Path:
    """The path of a local copy of the file or folder at ``url``, made or brought up to date now.

    Processes that ask for the same copy wait for each other.

    Raises:
        RemoteError: it cannot be read, holds no file, or does not fit on the disk.
    """
    remote = RemoteFolder(url)
    files = remote.files()
    if not files:
        raise RemoteError(f"cannot read {remote}: there is no such bucket, folder or file, or it is empty")
    folder = _cache() / hashlib.sha256(remote.url.encode()).hexdigest()[:16]
    target = folder / "copy" / _name_of(remote.url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, remote):
            _bring_up_to_date(remote, files, folder, target)
    except OSError as error:
        raise RemoteError(f"cannot copy {remote} to {folder}: {error.strerror or error}") from None
    return target


def _name_of(url: str) -> str:
    """The last part of a URL's path, from whose suffix readers know the format; of http without the query."""
    parts = urlsplit(url)
    web = parts.scheme in ("http", "https")
    return (unquote(parts.path) if web else url).rstrip("/").rpartition("/")[2] or "data"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nextscale" / "remote"


@contextlib.contextmanager
def _locked(folder: Path, remote: RemoteFolder) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"waiting for another process that copies {remote}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _bring_up_to_date(remote: RemoteFolder, files: dict[str, RemoteFile], folder: Path, target: Path) -> None:
    index = folder / "index.jsonl"
    have = {name: known for name, known in _recorded(index).items() if _is_there(target, name, files.get(name), known)}
    _remove_others(target, have)
    left = [name for name in files if name not in have]
    _write_index(index, have)
    if not left:
        return
    size = sum(files[name].size or 0 for name in left)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise RemoteError(
            f"cannot copy {remote}: it takes {decimal(size)}, and {folder} has {decimal(free)} left: "
            "set XDG_CACHE_HOME to a folder on a larger disk"
        )
    kept = f" ({len(have):,} are there already)" if have else ""
    _say(f"copying {len(left):,} file{'s' * (len(left) > 1)} ({decimal(size)}) from {remote} to {target}{kept}")
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    with _progress() as progress, index.open("a", encoding="utf-8") as record:
        task = progress.add_task("copying", total=size or None)
        for names in _batches(left, files):
            parts = [partial / str(number) for number in range(len(names))]
            remote.get([files[name] for name in names], parts)
            for name, part in zip(names, parts, strict=True):
                _take(part, _path(target, name), files[name], remote)
                record.write(_line(name, files[name]))
            record.flush()
            progress.advance(task, sum(files[name].size or 0 for name in names))
    shutil.rmtree(partial, ignore_errors=True)


def _batches(names: list[str], files: dict[str, RemoteFile]) -> Iterator[list[str]]:
    batch: list[str] = []
    taken = 0
    for name in names:
        size = files[name].size or 0
        if batch and (len(batch) == BATCH_FILES or taken + size > BATCH_BYTES):
            yield batch
            batch, taken = [], 0
        batch.append(name)
        taken += size
    yield batch


def _take(part: Path, path: Path, file: RemoteFile, remote: RemoteFolder) -> None:
    found = part.stat().st_size
    if file.size is not None and found != file.size:
        raise RemoteError(f"cannot copy {remote}: {file.path} ended after {found:,} of {file.size:,} bytes: try again")
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, path)


# The record of what is copied: a line for each file, the last one counts.


def _line(name: str, file: RemoteFile) -> str:
    return json.dumps([name, file.size, file.version]) + "\n"


def _write_index(index: Path, have: dict[str, RemoteFile]) -> None:
    new = index.with_suffix(".new")
    new.write_text("".join(_line(name, file) for name, file in have.items()), encoding="utf-8")
    os.replace(new, index)


def _recorded(index: Path) -> dict[str, RemoteFile]:
    found = {}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in index.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # the last line of a process that was killed
                name, size, version = json.loads(line)
                found[name] = RemoteFile(name, size, version)
    return found


def _is_there(target: Path, name: str, now: RemoteFile | None, copied: RemoteFile) -> bool:
    path = _path(target, name)
    same = now is not None and (now.size, now.version) == (copied.size, copied.version)
    return same and path.is_file() and copied.size in (None, path.stat().st_size)


def _path(target: Path, name: str) -> Path:
    return target / name if name else target


def _names_in(target: Path) -> Iterator[str]:
    if target.is_file():
        yield ""
    for root, _, files in os.walk(target):
        yield from (Path(root, file).relative_to(target).as_posix() for file in files)


def _remove_others(target: Path, have: dict[str, RemoteFile]) -> None:
    """Remove what the original does not have, or not like this, and folders that are then empty: readers see them."""
    for name in set(_names_in(target)) - set(have):
        _path(target, name).unlink()
    for root, _, _ in os.walk(target, topdown=False):
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(root)


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _say(message: str) -> None:
    Console(stderr=True).print(message, highlight=False, markup=False, soft_wrap=True)
