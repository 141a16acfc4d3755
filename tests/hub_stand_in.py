"""A hub in memory, behind the few names of huggingface_hub that nextscale uses, to test what nextscale makes of it.

``test_sharing_hub.py`` holds the real library against a server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class HTTPStatus(OSError):
    """As the library's errors, it has the response that it was raised for."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text or f"{status} Client Error (Request ID: x)")
        self.response = SimpleNamespace(status_code=status)


class RepositoryNotFoundError(HTTPStatus): ...


class GatedRepoError(RepositoryNotFoundError): ...


class RevisionNotFoundError(HTTPStatus): ...


class LocalEntryNotFoundError(FileNotFoundError): ...


class OfflineModeIsEnabled(ConnectionError): ...


@dataclass
class CommitOperationAdd:
    path_in_repo: str
    path_or_fileobj: str | bytes

    def content(self) -> bytes:
        given = self.path_or_fileobj
        return given if isinstance(given, bytes) else Path(given).read_bytes()


@dataclass
class CommitOperationDelete:
    path_in_repo: str


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, str] = field(default_factory=lambda: {"main": ""})
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"": {}})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        content = repr((sorted(files.items()), len(self.commits))).encode()
        name = hashlib.sha1(content).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        return name


class Hub:
    """``token`` is what the user has; ``failure`` is raised by the next call of the method named with it."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.repositories = cache, dict[str, Repository]()
        self.token: str | None = "secret"
        self.failure: tuple[str, Exception] | None = None
        self.downloaded: list[str] = []

    def module(self) -> ModuleType:
        module = ModuleType("huggingface_hub")
        errors = ModuleType("huggingface_hub.errors")
        for error in (
            RepositoryNotFoundError,
            GatedRepoError,
            RevisionNotFoundError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
        ):
            setattr(errors, error.__name__, error)
        names: dict[str, Any] = {
            "errors": errors,
            "get_token": lambda: self.token,
            "HfApi": lambda **_: self,
            "CommitOperationAdd": CommitOperationAdd,
            "CommitOperationDelete": CommitOperationDelete,
            "snapshot_download": self.snapshot_download,
        }
        for name, value in names.items():
            setattr(module, name, value)
        return module

    def _fail(self, method: str) -> None:
        if self.failure is not None and self.failure[0] == method:
            raise self.failure[1]

    def whoami(self) -> dict[str, str]:
        self._fail("whoami")
        return {"name": "me"}

    def create_repo(self, name: str, private: bool | None, exist_ok: bool) -> None:
        assert exist_ok
        self._fail("create_repo")
        self.repositories.setdefault(name, Repository(bool(private)))

    def model_info(self, name: str) -> Repository:
        return self.repositories[name]

    def create_branch(self, name: str, branch: str, exist_ok: bool) -> None:
        assert exist_ok
        there = self.repositories[name]
        there.branches.setdefault(branch, there.branches["main"])

    def list_repo_files(self, name: str, revision: str | None) -> list[str]:
        there = self.repositories[name]
        return list(there.commits[there.branches[revision or "main"]])

    def create_commit(
        self, name: str, operations: Sequence[Any], commit_message: str, revision: str | None
    ) -> SimpleNamespace:
        there, branch = self.repositories[name], revision or "main"
        files = dict(there.commits[there.branches[branch]])
        for operation in operations:
            if isinstance(operation, CommitOperationAdd):
                files[operation.path_in_repo] = operation.content()
            else:
                del files[operation.path_in_repo]
        self._fail("create_commit")
        commit = there.commit(branch, files)
        return SimpleNamespace(commit_url=f"the hub/{name}/commit/{commit}: {commit_message}")

    def snapshot_download(self, name: str, revision: str | None, allow_patterns: list[str], **_: Any) -> str:
        self._fail("snapshot_download")
        if name not in self.repositories:
            raise RepositoryNotFoundError(404)
        there = self.repositories[name]
        commit = there.branches.get(revision or "main", revision or "")
        if commit not in there.commits:
            raise RevisionNotFoundError(404)
        folder = self.cache / name.replace("/", "--") / "snapshots" / commit
        for path, content in there.commits[commit].items():
            if any(fnmatch(path, pattern) for pattern in allow_patterns):
                self.downloaded.append(path)
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
        return str(folder)
