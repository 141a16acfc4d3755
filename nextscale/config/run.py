"""Loading a run's configuration: preset < configuration file < ``key=value`` overrides. No torch here.

Anything wrong in one of the three raises a ``ConfigError`` of one line: the full dotted key, the given value, what is
allowed, and where the value came from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, create_model

from nextscale.config.dump import is_changed
from nextscale.config.sections import RunConfig
from nextscale.config.tree import NONE, Tree, is_optional, parse_override, section_of
from nextscale.config.yamltext import parse_mapping, read_text, read_yaml, shown
from nextscale.errors import ConfigError, PluginError, unknown
from nextscale.hub import pinned, run_folder
from nextscale.modality import ModalityConfig, ModalitySpec
from nextscale.plugins import discover, modality_config

NO_PRESET = "none"


def run_config_model(modality: str) -> type[RunConfig]:
    """The pydantic model of a run's configuration for one modality.

    Raises:
        PluginError: the modality is unknown or its configuration is broken.
    """
    return _run_config_model(modality_config(modality))


@lru_cache
def _run_config_model(sections: ModalityConfig) -> type[RunConfig]:
    fields: dict[str, Any] = {
        "data": (sections.data, Field(default_factory=sections.data)),
        "tokenizer": (sections.tokenizer, Field(default_factory=sections.tokenizer)),
    }
    return create_model("RunConfig", __base__=RunConfig, __module__=__name__, __doc__=RunConfig.__doc__, **fields)


def load_config(
    modality: str | None = None,
    preset: str | None = None,
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    default_modality: str | None = None,
    start: str | Path | None = None,
    proposal: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Resolve a run's configuration: preset < proposal < file < overrides.

    Args:
        modality: name of the modality; None takes the file's ``modality`` key, then ``default_modality``.
        preset: name of a preset, or ``none`` for bare defaults; None takes the file's ``preset`` key, then the
            modality's default preset.
        file: a YAML file; for a run's ``config.yaml``, prefer ``load_run_config``.
        overrides: ``a.b.c=value``. The value is YAML, and sequences may also be written ``1,2,3``; settings that are
            text take it as it is typed (``config.tree``).
        start: a run to fine-tune: a folder, or a name on the hub. ``training.init`` is set to it, and if no preset is
            given, its settings are used instead of a preset.
        proposal: settings for this data and machine (``training.plan``), which override the preset's.

    Raises:
        ConfigError: a file, key, value or preset is wrong.
        HubError: ``start`` cannot be loaded from the hub.
        PluginError: the modality is unknown or broken.
    """
    layer = read_yaml(file) if file is not None else {}
    base: dict[str, Any] = {}
    init: str | None = None
    if start is not None:
        folder, init = pinned(start)
        base = _read_run(folder / "config.yaml")
        default_modality = base["modality"]
    spec, model = _modality(modality, layer, file, overrides, default_modality)
    # `preset: null` in a file means no preset; a file without the key gets the default preset.
    named = layer.get("preset", spec.default_preset if start is None else None)
    if not isinstance(named, str | None):
        raise ConfigError(f"preset = {shown(named)} is wrong: should be the name of a preset (from {file})")
    named = _override_of("preset", overrides) or preset or named

    tree = Tree(model)
    if named not in (None, NO_PRESET):
        path = _preset_path(spec, named)
        settings = read_yaml(path)
        if settings.get("modality", spec.name) != spec.name or "preset" in settings:
            raise ConfigError(f"preset {named}: a preset must not name another preset or modality ({path})")
        tree.merge(settings, f"preset {named}")
    elif start is not None:
        if base.get("modality") != spec.name:
            raise ConfigError(f"{start} is a run of modality {base.get('modality')!r}, not {spec.name!r}")
        tree.merge(base, f"{start}/config.yaml")
    if start is not None:
        tree.merge({"training": {"init": init}}, "the run to start from")
    if proposal is not None:
        tree.merge(proposal, "the settings chosen for this data and time")
    tree.merge(layer, str(file))
    tree.override(overrides)
    tree.values.update(modality=spec.name, preset=named)
    return tree.validate()


def make_config(modality: str, settings: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A configuration from ``settings`` instead of a preset. Errors name ``source`` as the origin of the settings.

    Raises:
        ConfigError, PluginError: as ``load_config``.
    """
    tree = Tree(run_config_model(modality))
    tree.merge(settings, source)
    tree.override(overrides)
    tree.values["modality"] = modality
    return tree.validate()


def load_run_config(file: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that a run was saved with, then overrides.

    ``file`` is the run's ``config.yaml``, its folder, or its name on the hub.

    The preset is not applied again: the settings that the run was trained with hold, even if the preset has since
    changed or been removed.

    Raises:
        ConfigError, PluginError: as ``load_config``; also a file that is damaged: cut, changed, or without a setting.
        HubError: the hub has no such run, or cannot be reached.
    """
    file = run_folder(file)
    file = file / "config.yaml" if os.path.isdir(file) else file
    layer = _read_run(file)
    _, model = _modality(None, layer, file, overrides, None)
    tree = Tree(model)
    tree.merge(layer, str(file))
    tree.override(overrides)
    return tree.validate()


def parse_section(model: type[BaseModel], overrides: Sequence[str]) -> dict[str, Any]:
    """Only those settings of a section that ``overrides`` set, validated: ``["top_k=3,2"]`` -> ``{"top_k": (3, 2)}``.

    Raises:
        ConfigError: a key or value is wrong.
    """
    tree = Tree(model)
    tree.override(overrides)
    checked = tree.validate()
    return {name: getattr(checked, name) for name in tree.values}


def parse_options(modality: str, overrides: Sequence[str]) -> BaseModel:
    """The modality's evaluation options from ``eval.KEY=VALUE`` texts.

    Raises:
        ConfigError: an unknown option (the error names the closest match), or a wrong value.
        PluginError: an unknown modality.
    """
    section = modality_config(modality).evaluation
    fields: dict[str, Any] = {"eval": (section, Field(default_factory=section))}
    tree = Tree(create_model("Options", **fields))
    tree.override(overrides)
    return tree.validate().eval


def presets(modality: str) -> dict[str, Path]:
    """The presets of a modality, by name."""
    return _presets(discover().get(modality))


def preset_summary(path: Path) -> str:
    """A preset's one-line summary: the comment on its first line, if there is one."""
    first = next(iter(path.read_text(encoding="utf-8").splitlines()), "")
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _read_run(file: Path) -> dict[str, Any]:
    """The settings in a run's own ``config.yaml``, which must be whole: nothing is completed by defaults.

    Files of earlier releases have no checksum, nor the settings that their sections list as ``added``.
    """
    text = read_text(file)
    layer = parse_mapping(text, file)
    _, model = _modality(None, layer, file, (), None)
    missing = next(_missing(model, layer), None)
    damaged = f"{file} is damaged: "
    restore = "restore it from a copy, or from another run with the same settings"
    if missing is not None:
        raise ConfigError(f"{damaged}it lacks {missing}; {restore}")
    if not text.endswith("\n"):
        raise ConfigError(f"{damaged}its last line is cut (if you edited it, end it with a line break); {restore}")
    if is_changed(text):
        raise ConfigError(f"{damaged}its checksum does not fit; {restore} (if you edited it, delete its last line)")
    return layer


def _missing(model: type[BaseModel], values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Settings of the model that ``values`` lack, except those that earlier releases did not have."""
    for name, field in model.model_fields.items():
        here, inner = (*path, name), section_of(field.annotation)
        if name not in values:
            if name not in getattr(model, "added", ()):
                yield ".".join(here)
        elif inner is not None and isinstance(values[name], Mapping):
            yield from _missing(inner, values[name], here)
        elif inner is not None and inner.model_fields and not (values[name] is None and is_optional(field.annotation)):
            yield f"{'.'.join(here)}.{next(iter(inner.model_fields))}"


def _modality(
    modality: str | None,
    layer: dict[str, Any],
    file: str | Path | None,
    overrides: Sequence[str],
    default: str | None,
) -> tuple[ModalitySpec, type[RunConfig]]:
    asked = _override_of("modality", overrides) or modality
    named = layer.get("modality")
    if asked is not None and named is not None and asked != named:
        raise ConfigError(f"{file} is for modality {shown(named)}, not {asked!r}: name only one modality")
    name = asked or named or default
    if name is None:
        known = ", ".join(sorted(discover().modalities)) or "none"
        where = f"{file} names no modality" if file is not None else "no modality is named"
        raise ConfigError(f"{where} (known: {known})")
    if not isinstance(name, str):
        raise ConfigError(f"modality = {shown(name)} is wrong: should be a name (from {file})")
    try:
        return discover().get(name), run_config_model(name)
    except PluginError as error:
        if asked is None and named is not None:
            raise PluginError(f"{file}: {error}") from error
        raise


def _override_of(key: str, overrides: Sequence[str]) -> str | None:
    """The last override of a top-level key whose value must be known before the rest can be read."""
    given = [value for path, value in map(parse_override, overrides) if path == (key,)]
    if not given:
        return None
    return NO_PRESET if key == "preset" and given[-1] in NONE else given[-1]


def _presets(spec: ModalitySpec) -> dict[str, Path]:
    return {path.stem: path for path in sorted(spec.presets.glob("*.yaml"))}


def _preset_path(spec: ModalitySpec, name: str) -> Path:
    known = _presets(spec)
    if name not in known:
        raise ConfigError(f"{unknown('preset', name, [*known, NO_PRESET])} of modality {spec.name}")
    return known[name]


__all__ = [
    "NO_PRESET",
    "load_config",
    "load_run_config",
    "make_config",
    "parse_options",
    "parse_section",
    "preset_summary",
    "presets",
    "run_config_model",
]
