"""Entry points of the group ``nextscale``, each loaded inside its own guard, with a pluggy manager of its own."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import pluggy

from nextscale import hookspecs
from nextscale.errors import unknown
from nextscale.hookspecs import PROJECT
from nextscale.plugins.records import BrokenPlugin

GROUP = "nextscale"
DISABLE = "NEXTSCALE_DISABLE_PLUGINS"
"""Environment variable: names of entry points that are not loaded, separated by commas."""
T = TypeVar("T")


@dataclass
class Loaded:
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
                    self.problems.append(f"{hook} returned {shown(returned)}, not an iterable of {kind.__name__}")
                    continue
                for record in returned:
                    if isinstance(record, kind):
                        records.append(record)
                    else:
                        self.problems.append(f"{hook} returned {shown(record)}, not a {kind.__name__}")
        except (Exception, SystemExit) as error:
            self.problems.append(f"{hook} raised {one_line(error)}")
        return records


def third_party() -> bool:
    """Whether any distribution other than nextscale registers a plugin. Reads only metadata and loads nothing."""
    return any(origin(entry_point)[0] != PROJECT for entry_point in registered())


def registered() -> list[EntryPoint]:
    """Those of the group, without the ones that the user has disabled by name."""
    disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",")}
    return [entry_point for entry_point in entry_points(group=GROUP) if entry_point.name not in disabled]


def origin(entry_point: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution that an entry point belongs to."""
    distribution = entry_point.dist
    if distribution is None:
        return "unknown distribution", "?"
    return distribution.metadata["Name"] or "unnamed distribution", distribution.metadata["Version"] or "?"


def load(entry_point: EntryPoint) -> Loaded | BrokenPlugin:
    distribution, version = origin(entry_point)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    loaded = Loaded(entry_point.name, distribution, version, manager)
    had_torch = "torch" in sys.modules
    try:
        plugin = entry_point.load()
        manager.register(plugin, entry_point.name)
        loaded.problems += _hook_problems(manager, plugin)
    except (Exception, SystemExit) as error:
        return loaded.broken(one_line(error))
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


def shown(value: object) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
