"""Data by URL: a modality opens a local copy, whichever modality it is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from nextscale.errors import NextscaleError
from nextscale.remote.urls import is_url, without_secrets


def reads_urls(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A method that takes a data section, such as ``Modality.open_data``, for data behind a URL too.

    Where the section's location (``Section.shorthand``) is a URL, the method gets a copy of the section that names the
    local copy. The user's section stays as it is. Errors name the URL.
    """

    @functools.wraps(method)
    def call(config: Any) -> Any:
        setting = getattr(type(config), "shorthand", None)
        url = getattr(config, setting, None) if setting else None
        if not isinstance(url, str) or not is_url(url):
            return method(config)
        from nextscale.remote.copies import local_copy  # late, because every command imports this module

        here = str(local_copy(url))
        try:
            return method(config.model_copy(update={setting: here}))
        except NextscaleError as error:
            shown = without_secrets(url)
            error.args = tuple(each.replace(here, shown) if isinstance(each, str) else each for each in error.args)
            raise

    return call
