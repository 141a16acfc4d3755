"""Which texts are URLs, and which of them hold secrets. Imports nothing heavy, because every setting is checked."""

from __future__ import annotations

import re

from nextscale.errors import ConfigError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PASSWORD = re.compile(
    r"(?<=://)[^@\s]*:[^@\s]*@|(?<=https://)[^/?#@\s]+@|(?<=http://)[^/?#@\s]+@|(?<=ftp://)[^/?#@\s]+@"
)
"""Before the host; a token may stand there without a colon. Keys of storages may hold slashes."""
_SIGNED = re.compile(
    r"[?&#](?:[^=&#\s]*[-_.])?(?:sig|[^=&#\s]*(?:signature|token|secret|password|credential|key|auth)[^=&#\s]*)=[^&#\s]*",
    re.IGNORECASE,
)


def is_url(value: object) -> bool:
    """Whether a setting's value begins with ``SCHEME://``. ``hf:NAME`` and the like, which have no ``//``, do not."""
    return isinstance(value, str) and _SCHEME.match(value) is not None


def scheme_of(url: str) -> str:
    found = _SCHEME.match(url)
    assert found is not None
    return found[1].lower()


def without_secrets(text: str) -> str:
    """``text``, for messages, with ``***`` in the place of passwords and signatures in URLs."""
    return _SIGNED.sub("?***", _PASSWORD.sub("***@", text))


def refuse_secrets(value: object, setting: str) -> None:
    """Raise ConfigError for a URL that holds a password or a signature: settings are written into the run's folder."""
    if is_url(value) and without_secrets(str(value)) != value:
        raise ConfigError(
            f"{setting}={without_secrets(str(value))} holds a password or a signature, and settings are stored: leave "
            "it out, and give credentials as the storage's own tools take them (environment variables or their files)"
        )
