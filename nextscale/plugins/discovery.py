"""Everything that plugins offer. A broken plugin is recorded, and the others still work.

Every entry point has its own pluggy manager, so that a hook that raises does not stop the hooks of other plugins, and
every record can be traced to its distribution.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nextscale.errors import PluginError, unknown
from nextscale.hookspecs import CommandSpec, FormatSpec, RunSettings
from nextscale.plugins.loading import Loaded, load, origin, registered, shown
from nextscale.plugins.records import BrokenPlugin, Clash, ModalityPlugin

if TYPE_CHECKING:
    from nextscale.callbacks import TrainingCallback
    from nextscale.modality import ModalitySpec

logger = logging.getLogger(__name__)
Named = TypeVar("Named", CommandSpec, FormatSpec)


@dataclass
class Plugins:
    """Everything that was discovered, by name."""

    modalities: dict[str, ModalityPlugin] = field(default_factory=dict)
    broken: list[BrokenPlugin] = field(default_factory=list)
    clashes: list[Clash] = field(default_factory=list)
    _commands: dict[str, CommandSpec] = field(default_factory=dict)
    _formats: dict[str, FormatSpec] = field(default_factory=dict)
    _loaded: list[Loaded] = field(default_factory=list)

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


@lru_cache(maxsize=1)
def discover() -> Plugins:
    """Find and load every plugin and call its discovery hooks. A broken plugin is recorded and raises no error.

    The result is cached; ``discover.cache_clear()`` makes the next call search again.
    """
    from nextscale.modality import ModalitySpec

    plugins = Plugins()
    modalities: dict[str, list[ModalityPlugin]] = {}
    commands: list[tuple[Loaded, CommandSpec]] = []
    formats: list[tuple[Loaded, FormatSpec]] = []
    for entry_point in sorted(registered(), key=lambda entry: (*origin(entry), entry.name)):
        loaded = load(entry_point)
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


def _unrivalled(kind: str, offers: list[tuple[Loaded, Named]], clashes: list[Clash]) -> dict[str, Named]:
    """Records that only one entry point offers, by name. The others are added to ``clashes``."""
    by_name: dict[str, list[tuple[Loaded, Named]]] = {}
    for loaded, record in offers:
        by_name.setdefault(record.name, []).append((loaded, record))
    for name, rivals in sorted(by_name.items()):
        if len(rivals) > 1:
            clashes.append(Clash(kind, name, tuple((loaded.distribution, loaded.version) for loaded, _ in rivals)))
    return {name: rivals[0][1] for name, rivals in by_name.items() if len(rivals) == 1}


def _wrong_with(spec: ModalitySpec) -> str | None:
    from nextscale.modality import API_VERSION

    if spec.api_version != API_VERSION:
        side = "upgrade nextscale" if _newer(spec.api_version, API_VERSION) else "upgrade the plugin"
        versions = f"interface version {spec.api_version}; this nextscale has version {API_VERSION}"
        return f"modality {spec.name!r} was written for {versions}: {side}"
    for attribute in ("name", "summary", "config", "implementation", "default_preset"):
        if not isinstance(getattr(spec, attribute), str):
            return f"modality {spec.name!r}: {attribute} is {shown(getattr(spec, attribute))}, not a str"
    if not isinstance(spec.presets, Path):
        return f"modality {spec.name!r}: presets is {shown(spec.presets)}, not a pathlib.Path"
    return None


def _newer(version: Any, known: int) -> bool:
    return isinstance(version, int) and version > known
