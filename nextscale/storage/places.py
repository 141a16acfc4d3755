"""Where a token cache lies: a folder on this machine, or one behind a URL. Both are read the same way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nextscale.remote.folder import RemoteFolder
from nextscale.remote.urls import is_url


class LocalPlace:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        return self.path.exists()

    def size(self, name: str) -> int | None:
        """The bytes of a file; None if there is none of this name."""
        file = self.path / name
        return file.stat().st_size if file.is_file() else None

    def read(self, names: Sequence[str]) -> list[bytes]:
        """The contents of files.

        Raises:
            OSError: (or, behind a URL, RemoteError) one cannot be read.
        """
        return [(self.path / name).read_bytes() for name in names]


class RemotePlace:
    """As ``LocalPlace``. The storage is asked once which files there are."""

    def __init__(self, url: str) -> None:
        self.path = url.rstrip("/")
        self.folder = RemoteFolder(url)
        self._files = self.folder.files()

    def __str__(self) -> str:
        return str(self.folder)

    def exists(self) -> bool:
        return bool(self._files)

    def size(self, name: str) -> int | None:
        return self._files[name].size if name in self._files else None

    def read(self, names: Sequence[str]) -> list[bytes]:
        return self.folder.read(names)


Place = LocalPlace | RemotePlace


def place_of(where: Path | str) -> Place:
    """Raises RemoteError: the URL cannot be reached."""
    return RemotePlace(str(where)) if is_url(where) else LocalPlace(Path(where))


def within(where: Path | str, name: str) -> Path | str:
    """The path or URL of ``name`` in a folder."""
    return f"{str(where).rstrip('/')}/{name}" if is_url(where) else Path(where).expanduser() / name
