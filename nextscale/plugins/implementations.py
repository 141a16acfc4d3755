"""The code that a modality names by dotted path, with errors that say whose it is."""

from __future__ import annotations

import errno
import functools
import importlib
import inspect
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from nextscale.errors import NextscaleError, PluginError, unknown
from nextscale.plugins.discovery import discover
from nextscale.plugins.loading import GROUP, one_line, origin, shown
from nextscale.remote.data import reads_urls

if TYPE_CHECKING:
    from nextscale.modality import Modality, ModalityConfig

NOT_OF_THE_PLUGIN = (errno.ENOSPC, errno.EDQUOT, errno.EPIPE)
"""A full disk, and a reader of the output that went away, are no fault of the code that was writing."""


def load_object(path: str) -> Any:
    """The object at the dotted path ``package.module:attribute``.

    Raises:
        PluginError: the path is malformed, its module cannot be imported, or the module has no such attribute.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise PluginError(f"{path!r} is not a dotted path 'package.module:attribute'")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise PluginError(f"cannot import {module_name} (for {path}): {one_line(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise PluginError(f"{path}: {unknown('attribute', part, _public(found))}")
        found = getattr(found, part)
    return found


def modality(name: str) -> Modality:
    """The implementation of modality ``name`` (imports everything it needs, including torch).

    What its methods raise, other than a NextscaleError, becomes a PluginError that names the modality, its distribution
    and the method.

    Raises:
        PluginError: the modality or its implementation is unknown or broken.
    """
    from nextscale.modality import Modality

    path = discover().get(name).implementation
    implementation = load_object(path)
    if not (inspect.isclass(implementation) and issubclass(implementation, Modality)):
        raise PluginError(f"modality {name!r}: {path} is not a subclass of nextscale.modality.Modality")
    try:
        made = implementation()
    except Exception as error:
        raise PluginError(f"modality {name!r}: cannot create {path}: {one_line(error)}") from error
    for method, declared in vars(Modality).items():
        if inspect.isfunction(declared) and not method.startswith("_"):
            vars(made)[method] = _guarded(made, method, name)
    for method in ("open_data", "suit_data"):
        vars(made)[method] = reads_urls(vars(made)[method])
    return made


def place_in_plugin(error: BaseException) -> str | None:
    """Where in a plugin's code an exception was raised: ``nextscale_graph.source.take, of graph (nextscale 1.2)``.

    For what a modality's objects raise: sources, tokenizers, objectives. None if no plugin's code was running.
    """
    plugins = {entry.module.split(".")[0]: entry for entry in entry_points(group=GROUP)}
    place = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
        entry = plugins.get(module.split(".")[0])
        if entry is not None:
            place = f"{module}.{frame.f_code.co_name}, of {entry.name} ({' '.join(origin(entry))})"
    return place


def _guarded(made: Modality, method: str, name: str) -> Callable[..., Any]:
    """A method of a modality whose exceptions say where they come from. It is looked up at each call, as usual."""

    @functools.wraps(getattr(made, method))
    def call(*args: Any, **named: Any) -> Any:
        try:
            return getattr(type(made), method)(made, *args, **named)
        except NextscaleError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NOT_OF_THE_PLUGIN:
                raise
            plugin = discover().modalities[name]
            raise PluginError(
                f"modality {name} ({plugin.distribution} {plugin.version}): {method} raised {one_line(error)} "
                "(set NEXTSCALE_TRACEBACK=1 for the traceback)"
            ) from error

    return call


def modality_config(name: str) -> ModalityConfig:
    """The configuration sections of modality ``name``, without importing torch.

    Raises:
        PluginError: the modality or its configuration is unknown or broken.
    """
    from nextscale.modality import ModalityConfig

    path = discover().get(name).config
    config = load_object(path)
    if not isinstance(config, ModalityConfig):
        raise PluginError(f"modality {name!r}: {path} is {shown(config)}, not a nextscale.modality.ModalityConfig")
    return config


def _public(module: Any) -> list[str]:
    return [name for name in dir(module) if not name.startswith("_")]
