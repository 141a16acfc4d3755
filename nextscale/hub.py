"""Runs on the Hugging Face hub: ``hf:OWNER/NAME``, or ``hf:OWNER/NAME@REVISION`` (extra: hub).

This is the one place that knows what such a name means. Whatever takes a run calls ``run_folder`` and then reads an
ordinary folder, which lies in the hub's cache and must not be written to: ``outputs_folder`` says where to write.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nextscale.errors import ConfigError, HubError, causes

PREFIX = "hf:"
REPOSITORY_NAME = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_NAME = re.compile(rf"{PREFIX}(?P<repository>{REPOSITORY_NAME.pattern})(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)

MODELS = (
    "config.yaml",
    "tokenizer/config.json",
    "tokenizer/model.safetensors",
    "transformer/config.json",
    "transformer/model.safetensors",
)
"""The files that a run on the hub must have."""
SCORER = ("scorer/config.json", "scorer/model.safetensors")
"""The files that it also has if it has a scorer."""
RECORDS = ("README.md", "env.json", "eval.json")
"""Files that it may have. No others are downloaded."""

CLIENTS = ("httpx", "httpcore", "requests", "urllib3", "hf_xet")
"""What the modules start with that talk to the hub; each major version of huggingface_hub has another (httpx2 ...)."""
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def is_on_hub(run: str | Path) -> bool:
    return str(run).startswith(PREFIX)


def split_name(run: str | Path) -> tuple[str, str | None]:
    """``hf:me/digits@v1`` -> ``("me/digits", "v1")``.

    Raises:
        ConfigError: it is no such name.
    """
    match = _NAME.fullmatch(str(run))
    if match is None:
        raise ConfigError(f"{str(run)[:200]!r} should be hf:OWNER/NAME or hf:OWNER/NAME@REVISION, such as hf:me/digits")
    return match["repository"], match["revision"]


def run_folder(run: str | Path) -> Path:
    """The folder of a run. One on the hub is downloaded into the hub's cache; what is there is not downloaded again.

    Without a network, the cache is all there is.

    Raises:
        ConfigError: the name is wrong.
        HubError: there is no such repository or revision, no access to it, no network, or no run in it.
    """
    if not is_on_hub(run):
        return Path(run)
    repository, revision = split_name(run)
    with hub_errors(f"cannot load {run}", "read"), _without_warnings():
        found = library(f"loading {run}").snapshot_download(
            repository,
            revision=revision,
            allow_patterns=[*MODELS, *SCORER, *RECORDS],
            library_name="nextscale",
            library_version=version("nextscale"),
        )
    missing = [name for name in MODELS if not (Path(found) / name).is_file()]
    if missing:
        raise HubError(
            f"{run} holds no nextscale run: it has no {', '.join(missing)}"
            # Newer versions of the library tell a folder that is incomplete.
            " (or only a part of it was downloaded: load it once more with a network)"
        )
    return Path(found)


def outputs_folder(run: str | Path) -> Path:
    """The folder for what commands make of a run: its own, or ``runs/OWNER--NAME`` for one on the hub."""
    if not is_on_hub(run):
        return Path(run)
    repository, revision = split_name(run)
    return Path("runs") / "@".join(filter(None, (repository, revision))).replace("/", "--")


def pinned(run: str | Path) -> tuple[Path, str]:
    """The folder of a run, and how to name it so that it stays the same: an absolute path, or ``hf:OWNER/NAME@COMMIT``.

    Raises as ``run_folder``.
    """
    folder = run_folder(run)
    if not is_on_hub(run):
        return folder, str(folder.resolve())
    return folder, f"{PREFIX}{split_name(run)[0]}@{folder.name}"  # the cache names its folders after commits


def library(purpose: str) -> Any:
    """The module ``huggingface_hub``; raises HubError if it is not installed."""
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise HubError(f"{purpose} needs huggingface_hub: pip install 'nextscale[hub]'") from None
    return huggingface_hub


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep the library from saying that nothing matched: we say what is missing."""
    logger = logging.getLogger("huggingface_hub._snapshot_download")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def hub_errors(what: str, access: str) -> Iterator[None]:
    """Turn whatever goes wrong with the hub into one line that begins with ``what``; it needs ``access``."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # network, HTTP, names, cache, disk: the library documents no common base class
        raise HubError(f"{what}: {_reason(error, access)}") from None


def _reason(error: Exception, access: str) -> str:
    from huggingface_hub import errors  # pyright: ignore[reportMissingImports]

    raised = list(causes(error))
    for cause in raised:
        if type(cause).__name__ == "IncompleteSnapshotError":  # older versions return the incomplete folder instead
            return "only a part of it was downloaded, and the hub cannot be reached: load it once more with a network"
        if isinstance(cause, errors.GatedRepoError):
            return f"its owner has to give you access first; then {LOG_IN}"
        if isinstance(cause, errors.RevisionNotFoundError):
            return "it has no such revision"
        if isinstance(cause, errors.RepositoryNotFoundError):
            return f"there is no such repository, or it is private: {LOG_IN}"
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return "it is not in the cache, and HF_HUB_OFFLINE is set"
        status = _status(cause)
        if status == 401:
            return f"the hub does not accept your token: {LOG_IN}"
        if status == 403:
            return f"your token gives no {access} access to this repository"
        if status is not None:
            return f"the hub answered {status} ({_one_line(cause)})"
        if getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return "the disk is full"
    for cause in reversed(raised):
        if isinstance(cause, ConnectionError | TimeoutError) or type(cause).__module__.startswith(CLIENTS):
            return f"the hub cannot be reached, or broke off ({_one_line(cause)})"
    return _one_line(error)


def _status(error: BaseException) -> int | None:
    """The HTTP status that the hub answered with. hf_xet only names it in its text."""
    named = re.search(r"HTTP status (?:client|server) error \((\d{3})", str(error))
    return getattr(getattr(error, "response", None), "status_code", None) or (int(named[1]) if named else None)


def _one_line(error: BaseException) -> str:
    text = re.sub(r"For more information check: \S+", "", str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:300]}"
