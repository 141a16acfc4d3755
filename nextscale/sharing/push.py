"""Put a run where others find it: into a repository on the hub, or into a folder."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nextscale.errors import ConfigError, HubError
from nextscale.hub import LOG_IN, PREFIX, REPOSITORY_NAME, hub_errors, library
from nextscale.sharing.package import Files, may_be_ours, package
from nextscale.storage.files import fsync, partial_name, remove, replace_folder, writing


def is_folder_name(name: str) -> bool:
    """Whether ``name`` means a folder on this computer: it starts with ``/``, ``~`` or a dot."""
    return name.startswith(("/", "~", "."))


def push_to_folder(run: str | Path, folder: Path, license: str | None = None) -> Path:
    """Write the files that ``push`` would upload into a new folder, whole or not at all. It is a run like any other.

    Raises:
        ConfigError: the folder exists.
        CheckpointError, ConfigError, PluginError: as ``package``.
        TrainingError: the disk is full or not writable.
    """
    folder = Path(folder).expanduser()
    if folder.exists():
        raise ConfigError(f"{folder} exists: name another folder")
    files = package(run, f"./{folder.name}", license)
    partial = partial_name(folder)
    with writing(folder):
        try:
            remove(partial)
            for name, content in files.items():
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    path.write_bytes(content)
                else:
                    shutil.copyfile(content, path)
                fsync(path)
            replace_folder(partial, folder)
        except BaseException:
            remove(partial)
            raise
    return folder


def push(
    run: str | Path,
    name: str,
    private: bool = False,
    branch: str | None = None,
    license: str | None = None,
    message: str | None = None,
) -> tuple[str, str]:
    """Upload a run to the hub as one commit. What was uploaded before an interruption is not uploaded again.

    Args:
        name: ``OWNER/NAME``, or ``NAME`` for a repository of one's own. It is made if there is none.
        private: make it private. A repository that is public already is refused.
        branch: commit to this branch; made if there is none. None is the main one.

    Returns:
        the name to load it by, and the address of the commit.

    Raises:
        ConfigError: the name is wrong.
        CheckpointError, ConfigError, PluginError: as ``package``.
        HubError: no token, no right to write, no network, or the upload broke off. There is then no commit.
    """
    repository = name.removeprefix(PREFIX)
    if not REPOSITORY_NAME.fullmatch(repository):
        raise ConfigError(
            f"{name[:200]!r} should be OWNER/NAME, such as me/digits, or a folder (one that starts with / or ./)"
        )
    hub = library(f"pushing to {name}")
    if hub.get_token() is None:
        raise HubError(f"cannot push to {name}: {LOG_IN}")
    api = hub.HfApi(library_name="nextscale", library_version=version("nextscale"))
    if "/" not in repository:
        with hub_errors(f"cannot push to {name}", "write"):
            repository = f"{api.whoami()['name']}/{repository}"
    files = package(run, f"{PREFIX}{repository}{f'@{branch}' if branch else ''}", license)
    with hub_errors(f"cannot push to {name}", "write"):
        # None leaves the choice to the owner's settings; False would make it public whatever they say.
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise HubError(f"{repository} is public already: push without --private, or to another name")
        if branch is not None:
            api.create_branch(repository, branch=branch, exist_ok=True)
        there = api.list_repo_files(repository, revision=branch)
        commit = api.create_commit(
            repository,
            _operations(hub, files, there),
            commit_message=message or f"nextscale {version('nextscale')}: push",
            revision=branch,
        )
    return f"{PREFIX}{repository}{f'@{branch}' if branch else ''}", str(commit.commit_url)


def _operations(hub: Any, files: Files, there: list[str]) -> list[Any]:
    """Add all files, and delete what only an earlier push had. Other files in the repository stay."""
    added = [
        hub.CommitOperationAdd(path, content if isinstance(content, bytes) else str(content.resolve()))
        for path, content in files.items()
    ]
    return [*added, *(hub.CommitOperationDelete(path) for path in there if path not in files and may_be_ours(path))]
