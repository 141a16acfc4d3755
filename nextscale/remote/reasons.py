"""What went wrong with a storage, in one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from nextscale.errors import NextscaleError, RemoteError, causes
from nextscale.remote.urls import without_secrets


@contextmanager
def remote_errors(what: str) -> Iterator[None]:
    """Turn whatever goes wrong with a storage into one line that begins with ``what``."""
    try:
        yield
    except NextscaleError:
        raise
    except Exception as error:  # each file system has libraries and errors of its own
        raise RemoteError(f"{what}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    raised = list(causes(error))
    if any("credential" in type(cause).__name__.lower() for cause in raised):
        return "there are no credentials for it: set them as the storage's own tools take them (AWS_..., GOOGLE_...)"
    for cause in raised:
        if _is_late(cause):
            return "it does not answer in time: check the address and the network"
        if _is_unreachable(cause):
            return f"it cannot be reached ({_short(cause)}): check the address and the network"
        if _is_denied(cause):
            return "access is denied: check the credentials, and what they may do"
    for cause in raised:
        if isinstance(cause, FileNotFoundError):
            return "there is no such bucket, folder or file"
        if getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return "the disk is full"
    return _short(error)


# By name, because each library has its own classes for these.


def _is_late(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or "timeout" in type(error).__name__.lower()


def _is_unreachable(error: BaseException) -> bool:
    return isinstance(error, ConnectionError) or "connect" in type(error).__name__.lower()


def _is_denied(error: BaseException) -> bool:
    return isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403)


def means_absence(error: FileNotFoundError) -> bool:
    """Whether nothing is there. The HTTP file system says so too where no answer came, or a refusal."""
    return not any(_is_late(cause) or _is_unreachable(cause) or _is_denied(cause) for cause in causes(error))


def _short(error: BaseException) -> str:
    text = without_secrets(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
