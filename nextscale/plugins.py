"""Plugin discovery: entry points of the group ``nextscale``, each loaded inside its own guard. No torch here.

A broken plugin is recorded, and the others still work. Every entry point gets its own pluggy manager, so that a hook
that raises does not stop the hooks of other plugins, and every record can be traced to its distribution.
"""

from __future__ import annotations

import errno
import functools
import importlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from nextscale import hookspecs
from nextscale.errors import NextscaleError, PluginError, unknown
from nextscale.hookspecs import PROJECT, CommandSpec, FormatSpec, RunSettings
from nextscale.remote.data import reads_urls

if TYPE_CHECKING:
    from nextscale.callbacks import TrainingCallback
    from nextscale.modality import Modality, ModalityConfig, ModalitySpec

GROUP = "nextscale"
DISABLE = "NEXTSCALE_DISABLE_PLUGINS"
"""Environment variable: names of entry points that are not loaded, separated by commas."""
NOT_OF_THE_PLUGIN = (errno.ENOSPC, errno.EDQUOT, errno.EPIPE)
"""A full disk, and a reader of the output that went away, are no fault of the code that was writing."""
logger = logging.getLogger(__name__)
T = TypeVar("T")
Named = TypeVar("Named", CommandSpec, FormatSpec)


@dataclass(frozen=True)
class ModalityPlugin:
    """A modality and the distribution that offers it."""

    spec: ModalitySpec
    distribution: str
    version: str


@dataclass(frozen=True)
class BrokenPlugin:
    """One thing that is wrong with an entry point, in one line. The rest of the plugin may still work."""

    name: str
    distribution: str
    version: str
    error: str

    def __str__(self) -> str:
        return f"plugin {self.name!r} of {self.distribution} {self.version} is broken: {self.error}"


@dataclass(frozen=True)
class Clash:
    """A name that several entry points offer. ``offers`` holds the distribution and version of each."""

    kind: str
    name: str
    offers: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        offers = " and ".join(f"{distribution} {version}" for distribution, version in self.offers)
        distributions = {distribution for distribution, _ in self.offers}
        cure = "uninstall one of them" if len(distributions) > 1 else "it is registered twice"
        return f"{self.kind} {self.name!r} is offered by {offers}: {cure}"


@dataclass
class Plugins:
    """Everything that was discovered, by name."""

    modalities: dict[str, ModalityPlugin] = field(default_factory=dict)
    broken: list[BrokenPlugin] = field(default_factory=list)
    clashes: list[Clash] = field(default_factory=list)
    _commands: dict[str, CommandSpec] = field(default_factory=dict)
    _formats: dict[str, FormatSpec] = field(default_factory=dict)
    _loaded: list[_Loaded] = field(default_factory=list)

    def get(self, name: str) -> ModalitySpec:
        """The modality ``name``.

        Raises:
            PluginError: it is unknown (the error names the closest match), its plugin is broken, or two plugins offer
                it.
        """
        if name in self.modalities:
            return self.modalities[name].spec
        for clash in self.clashes:
            if (clash.kind, clash.name) == ("modality", name):
                raise PluginError(str(clash))
        for broken in self.broken:
            if broken.name == name:
                raise PluginError(str(broken))
        raise PluginError(unknown("modality", name, self.modalities))

    def commands(self) -> list[CommandSpec]:
        """The extra commands, sorted by name, without those that clash."""
        return [self._commands[name] for name in sorted(self._commands)]

    def formats(self) -> list[FormatSpec]:
        """The formats of trained models, sorted by name, without those that clash."""
        return [self._formats[name] for name in sorted(self._formats)]

    def callbacks(self, config: RunSettings, folder: Path) -> list[TrainingCallback]:
        """The training callbacks of all plugins. A plugin that fails is recorded, logged as a warning, and left out."""
        from nextscale.callbacks import TrainingCallback

        callbacks: list[TrainingCallback] = []
        for loaded in self._loaded:
            known = len(loaded.problems)
            callbacks += loaded.call("nextscale_callbacks", TrainingCallback, config=config, folder=folder)
            for problem in loaded.problems[known:]:
                broken = loaded.broken(problem)
                logger.warning("%s", broken)
                if broken not in self.broken:  # an earlier run may have recorded it already
                    self.broken.append(broken)
        return callbacks


@dataclass
class _Loaded:
    """An entry point that could be imported, its own manager, and the problems found with it so far."""

    name: str
    distribution: str
    version: str
    manager: pluggy.PluginManager
    problems: list[str] = field(default_factory=list)

    def broken(self, problem: str) -> BrokenPlugin:
        return BrokenPlugin(self.name, self.distribution, self.version, problem)

    def call(self, hook: str, kind: type[T], **arguments: Any) -> list[T]:
        """The records that this plugin's ``hook`` returns, without those that are not a ``kind``."""
        records: list[T] = []
        try:
            for returned in getattr(self.manager.hook, hook)(**arguments):
                if not isinstance(returned, Iterable) or isinstance(returned, str):
                    self.problems.append(f"{hook} returned {_shown(returned)}, not an iterable of {kind.__name__}")
                    continue
                for record in returned:
                    if isinstance(record, kind):
                        records.append(record)
                    else:
                        self.problems.append(f"{hook} returned {_shown(record)}, not a {kind.__name__}")
        except (Exception, SystemExit) as error:
            self.problems.append(f"{hook} raised {_one_line(error)}")
        return records


@lru_cache(maxsize=1)
def discover() -> Plugins:
    """Find and load every plugin and call its discovery hooks. A broken plugin is recorded and raises no error.

    The result is cached; ``discover.cache_clear()`` makes the next call search again.
    """
    from nextscale.modality import ModalitySpec

    plugins = Plugins()
    modalities: dict[str, list[ModalityPlugin]] = {}
    commands: list[tuple[_Loaded, CommandSpec]] = []
    formats: list[tuple[_Loaded, FormatSpec]] = []
    for entry_point in sorted(_entry_points(), key=lambda entry: (*_origin(entry), entry.name)):
        loaded = _load(entry_point)
        if isinstance(loaded, BrokenPlugin):
            plugins.broken.append(loaded)
            continue
        plugins._loaded.append(loaded)
        for spec in loaded.call("nextscale_modalities", ModalitySpec):
            problem = _wrong_with(spec)
            if problem:
                loaded.problems.append(problem)
            else:
                plugin = ModalityPlugin(spec, loaded.distribution, loaded.version)
                modalities.setdefault(spec.name, []).append(plugin)
        commands += [(loaded, command) for command in loaded.call("nextscale_commands", CommandSpec)]
        formats += [(loaded, spec) for spec in loaded.call("nextscale_formats", FormatSpec)]
        plugins.broken += [loaded.broken(problem) for problem in loaded.problems]

    for name in sorted(modalities):
        offers = modalities[name]
        if len(offers) == 1:
            plugins.modalities[name] = offers[0]
        else:
            origins = tuple((offer.distribution, offer.version) for offer in offers)
            plugins.clashes.append(Clash("modality", name, origins))
    plugins._commands = _unrivalled("command", commands, plugins.clashes)
    plugins._formats = _unrivalled("format", formats, plugins.clashes)
    return plugins


def _unrivalled(kind: str, offers: list[tuple[_Loaded, Named]], clashes: list[Clash]) -> dict[str, Named]:
    """Records that only one entry point offers, by name. The others are added to ``clashes``."""
    by_name: dict[str, list[tuple[_Loaded, Named]]] = {}
    for loaded, record in offers:
        by_name.setdefault(record.name, []).append((loaded, record))
    for name, rivals in sorted(by_name.items()):
        if len(rivals) > 1:
            clashes.append(Clash(kind, name, tuple((loaded.distribution, loaded.version) for loaded, _ in rivals)))
    return {name: rivals[0][1] for name, rivals in by_name.items() if len(rivals) == 1}


def third_party() -> bool:
    """Whether any distribution other than nextscale registers a plugin. Reads only metadata and loads nothing."""
    return any(_origin(entry_point)[0] != PROJECT for entry_point in _entry_points())


def _entry_points() -> list[EntryPoint]:
    """Those of the group, without the ones that the user has disabled by name."""
    disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",")}
    return [entry_point for entry_point in entry_points(group=GROUP) if entry_point.name not in disabled]


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
        raise PluginError(f"cannot import {module_name} (for {path}): {_one_line(error)}") from error
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
        raise PluginError(f"modality {name!r}: cannot create {path}: {_one_line(error)}") from error
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
            place = f"{module}.{frame.f_code.co_name}, of {entry.name} ({' '.join(_origin(entry))})"
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
                f"modality {name} ({plugin.distribution} {plugin.version}): {method} raised {_one_line(error)} "
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
        raise PluginError(f"modality {name!r}: {path} is {_shown(config)}, not a nextscale.modality.ModalityConfig")
    return config


def _origin(entry_point: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution that an entry point belongs to."""
    distribution = entry_point.dist
    if distribution is None:
        return "unknown distribution", "?"
    return distribution.metadata["Name"] or "unnamed distribution", distribution.metadata["Version"] or "?"


def _load(entry_point: EntryPoint) -> _Loaded | BrokenPlugin:
    distribution, version = _origin(entry_point)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    loaded = _Loaded(entry_point.name, distribution, version, manager)
    had_torch = "torch" in sys.modules
    try:
        plugin = entry_point.load()
        manager.register(plugin, entry_point.name)
        loaded.problems += _hook_problems(manager, plugin)
    except (Exception, SystemExit) as error:
        return loaded.broken(_one_line(error))
    if "torch" in sys.modules and not had_torch:
        loaded.problems.append(
            f"its entry module {entry_point.module} imports torch, so every command starts slowly: import it in the "
            "modules that need it, which the records name by dotted path"
        )
    return loaded


def _hook_problems(manager: pluggy.PluginManager, plugin: object) -> list[str]:
    """Mistakes that pluggy silently accepts: hooks that are misspelt, undecorated, or have arguments with defaults."""
    specs = {name for name, value in vars(hookspecs).items() if hasattr(value, f"{PROJECT}_spec")}
    callers = {caller.name: caller for caller in manager.get_hookcallers(plugin) or []}
    problems = []
    for name in sorted({*callers} - specs):
        problems.append(unknown("hook", name, specs))
    for name in sorted({*callers} & specs):
        for implementation in callers[name].get_hookimpls():
            if implementation.kwargnames:
                hidden = ", ".join(implementation.kwargnames)
                problems.append(f"{name}: arguments with a default are never passed; remove the default of {hidden}")
    for name in dir(plugin):
        if not name.startswith(f"{PROJECT}_") or name in callers or not inspect.isroutine(getattr(plugin, name)):
            continue
        problems.append(f"{name} lacks @hookimpl" if name in specs else unknown("hook", name, specs))
    return problems


def _wrong_with(spec: ModalitySpec) -> str | None:
    from nextscale.modality import API_VERSION

    if spec.api_version != API_VERSION:
        side = "upgrade nextscale" if _newer(spec.api_version, API_VERSION) else "upgrade the plugin"
        versions = f"interface version {spec.api_version}; this nextscale has version {API_VERSION}"
        return f"modality {spec.name!r} was written for {versions}: {side}"
    for attribute in ("name", "summary", "config", "implementation", "default_preset"):
        if not isinstance(getattr(spec, attribute), str):
            return f"modality {spec.name!r}: {attribute} is {_shown(getattr(spec, attribute))}, not a str"
    if not isinstance(spec.presets, Path):
        return f"modality {spec.name!r}: presets is {_shown(spec.presets)}, not a pathlib.Path"
    return None


def _newer(version: Any, known: int) -> bool:
    return isinstance(version, int) and version > known


def _public(module: Any) -> list[str]:
    return [name for name in dir(module) if not name.startswith("_")]


def _shown(value: object) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


__all__ = [
    "BrokenPlugin",
    "Clash",
    "ModalityPlugin",
    "Plugins",
    "discover",
    "load_object",
    "modality",
    "modality_config",
    "place_in_plugin",
    "third_party",
]
