"""A file or a folder behind a URL, as fsspec sees it. Whatever goes wrong is one line, said soon."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nextscale.errors import RemoteError
from nextscale.remote.reasons import means_absence, remote_errors
from nextscale.remote.urls import scheme_of, without_secrets

T = TypeVar("T")
ANSWER_SECONDS = 20.0
"""How long a storage may take for its first answer. The libraries would try again for minutes."""
READ_SECONDS = 60.0
"""How long it may take to send the files of a shard, a few MiB."""
_VERSIONS = (
    "ETag", "etag", "md5Hash", "Content-MD5", "Digest", "generation", "blob_id", "LastModified", "Last-Modified",
    "last_modified", "last_write_time", "mtime", "modify", "updated", "created",
)  # fmt: skip
"""Where the file systems of fsspec say which version of a file there is; the first that they give is taken."""
_PACKAGES = ("s3fs", "gcsfs")
"""Those in the extra ``remote``."""


@dataclass(frozen=True)
class RemoteFile:
    """A file: its full path, its size in bytes if the storage tells, and a text that changes with its content."""

    path: str
    size: int | None
    version: str


class RemoteFolder:
    """What lies at ``url``. Nothing is asked of the storage until a method is called.

    Raises:
        RemoteError: (here and in every method) one line: the protocol is unknown or its package is not installed, the
            storage does not answer, there is no such bucket or file, or no access to it.
    """

    def __init__(self, url: str) -> None:
        if not url.partition("://")[2].strip("/"):
            raise RemoteError(f"{url} names no bucket or file: it should be {scheme_of(url)}://BUCKET/FOLDER")
        self.url = url.rstrip("/")
        self.fs, self.root = _file_system(self.url)
        if any(part in (".", "..") for part in self.url.split("/")):
            raise RemoteError(f"{self} goes up and down folders: name the place itself")

    def __str__(self) -> str:
        return without_secrets(self.url)

    def files(self) -> dict[str, RemoteFile]:
        """Every file by its name relative to the URL, whose parts are joined by ``/``; a single file under the name "".

        Empty if there is nothing. Keys that cannot be names of files, and those that are a file and a folder at once,
        are errors: object storages have them, folders do not.
        """
        with remote_errors(f"cannot read {self}"):
            self.fs.invalidate_cache()
            try:
                own = _answer(lambda: self.fs.info(self.root))
                # HTTP has no folders: fsspec would read the file, in search of links.
                alone = own["type"] == "file" and scheme_of(self.url).startswith("http")
                listed = {} if alone else self.fs.find(self.root, detail=True)
            except FileNotFoundError as error:
                if means_absence(error):
                    return {}
                raise
        if own["type"] == "file":
            listed[self.root] = own
        found = {}
        for path, info in listed.items():
            if info.get("type") == "directory" or path.endswith("/"):
                continue
            name = path.removeprefix(self.root).removeprefix("/")
            version = next((info[key] for key in _VERSIONS if info.get(key) is not None), None)
            found[name] = RemoteFile(path, info.get("size"), str(version))
        self._check_names(found, own["type"])
        return found

    def _check_names(self, found: dict[str, RemoteFile], kind: str) -> None:
        if "" in found:
            if len(found) > 1 or kind != "file":
                raise RemoteError(f"{self} is both a file and a folder: name one of the files in it, or rename it")
            return
        for name in found:
            parts = name.split("/")
            if any(part in ("", ".", "..") or "\0" in part for part in parts):
                raise RemoteError(f"{self} holds {name!r}, which cannot be the name of a file here: rename it")
            above = next((part for end in range(1, len(parts)) if (part := "/".join(parts[:end])) in found), None)
            if above is not None:
                raise RemoteError(f"{self}/{above} is both a file and a folder: rename one of them")

    def read(self, names: Sequence[str]) -> list[bytes]:
        """The contents of files, fetched side by side."""
        if not names:
            return []
        with remote_errors(f"cannot read {self}/{', '.join(names[:3])}"):
            found = _answer(lambda: self.fs.cat([self._path(name) for name in names]), READ_SECONDS)
        return [found[self._path(name)] for name in names]

    def get(self, files: Sequence[RemoteFile], targets: Sequence[Path]) -> None:
        """Copy files to local paths, as many side by side as the file system can."""
        with remote_errors(f"cannot read {self}"):
            self.fs.get([file.path for file in files], [str(target) for target in targets])

    def put(self, file: Path, name: str) -> None:
        """Copy a local file there. An object storage shows it once it is whole, or not at all."""
        with remote_errors(f"cannot write {self}/{name}"):
            # What is asynchronous are object storages. They have no folders, and s3fs would create a missing bucket.
            if not self.fs.async_impl:
                self.fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self.fs.put_file(str(file), self._path(name))

    def remove(self, name: str = "") -> None:
        """Remove a file or, without a name, everything, if it is there."""
        with remote_errors(f"cannot remove {self}/{name}"):
            path = self._path(name) if name else self.root
            self.fs.invalidate_cache()
            if self.fs.exists(path):
                self.fs.rm(path, recursive=True)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec
    from fsspec.registry import known_implementations

    scheme = scheme_of(url)
    if "::" in url:
        raise RemoteError(f"{without_secrets(url)} chains file systems, which is not supported: give one URL")
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ValueError:
        raise RemoteError(
            f"{without_secrets(url)}: unknown protocol {scheme}:// (such as s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, "
            "https://HOST/FILE)"
        ) from None
    except ImportError:
        wanted = known_implementations.get(scheme, {})
        package = str(wanted.get("class", scheme)).split(".")[0]
        if package == "fsspec":  # its own file system of this name needs another package, which it names
            raise RemoteError(f"{scheme}:// cannot be used: {wanted.get('err')}") from None
        extra = "'nextscale[remote]'" if package in _PACKAGES else package
        raise RemoteError(f"{scheme}:// needs {package}: pip install {extra}") from None
    with remote_errors(f"cannot open {without_secrets(url)}"):
        options = kind._get_kwargs_from_urls(url)
        if scheme in ("http", "https"):  # by default, a whole file has five minutes
            from aiohttp import ClientTimeout

            options["client_kwargs"] = {"timeout": ClientTimeout(None, None, READ_SECONDS, ANSWER_SECONDS)}
        fs = _answer(lambda: kind(**options))
        return fs, str(kind._strip_protocol(url))


def _answer(ask: Callable[[], T], seconds: float | None = None) -> T:
    """What ``ask`` returns or raises; TimeoutError if that takes too long."""
    got: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            got.append(ask())
        except BaseException as error:
            failed.append(error)

    asking = threading.Thread(target=run, daemon=True)  # one that never returns must not keep the process alive
    asking.start()
    asking.join(ANSWER_SECONDS if seconds is None else seconds)
    if failed:
        raise failed[0]
    if not got:
        raise TimeoutError
    return got[0]
