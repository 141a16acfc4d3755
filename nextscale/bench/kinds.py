"""The kinds of model that a comparison trains: each is a name, and the settings in which it differs from the preset."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nextscale.config.grid import ConvolutionalConfig
from nextscale.config.sections import RunConfig
from nextscale.errors import ConfigError, unknown

ONE_GRID = ("raster", "spiral", "morton", "random")
"""Orders in which the tokens of a single grid are drawn one by one: next-token baselines."""
BUILT_IN = ("scales", *ONE_GRID, "one-by-one")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Kind:
    """``settings`` are ``key=value`` texts over those that all kinds share."""

    name: str
    settings: tuple[str, ...] = ()


def choose_kinds(names: Sequence[str], free: Sequence[str], base: RunConfig, passes: int = 2) -> list[Kind]:
    """The kinds of a comparison, in the order in which they are named.

    ``scales`` is next-scale prediction, as ``base`` says. ``raster``, ``spiral``, ``morton`` and ``random`` draw the
    tokens of the finest grid one by one, ``passes`` codes per place, with the same guidance for every token (a ramp
    over tokens would leave the first places without any). ``one-by-one`` draws the tokens of ``scales`` one by one.

    Args:
        names: of the built-in kinds.
        free: ``NAME: KEY=VALUE KEY=VALUE``; a value with spaces stands in quotes.

    Raises:
        ConfigError: an unknown or repeated kind, or one that these settings do not allow.
    """
    kinds = [*_built_in(names, base, passes), *map(parse_kind, free)]
    seen: set[str] = set()
    for kind in kinds:
        if kind.name in seen:
            raise ConfigError(f"kind {kind.name!r} is named twice: give each kind a name of its own")
        seen.add(kind.name)
    if not kinds:
        raise ConfigError(f"no kinds to compare: name some with --kinds (known: {', '.join(BUILT_IN)}) or --kind")
    return kinds


def parse_kind(text: str) -> Kind:
    """``markov: transformer.attention=markov``

    Raises:
        ConfigError: the text has another form.
    """
    name, colon, rest = text.partition(":")
    try:
        settings = shlex.split(rest)
    except ValueError:
        settings = [""]
    if not colon or not NAME.fullmatch(name.strip()) or not settings or not all("=" in each for each in settings):
        raise ConfigError(
            f"--kind {text!r} is wrong: should be a name (letters, digits, '.', '_', '-'), a colon and settings, such "
            "as 'markov: transformer.attention=markov'"
        )
    return Kind(name.strip(), tuple(settings))


def _built_in(names: Sequence[str], base: RunConfig, passes: int) -> Iterator[Kind]:
    for name in names:
        if name not in BUILT_IN:
            raise ConfigError(unknown("kind", name, BUILT_IN))
        if name == "scales":
            yield Kind(name)
            continue
        scales = base.tokenizer.model_dump(mode="json").get("scales")
        if not isinstance(base.tokenizer, ConvolutionalConfig) or not scales:
            raise ConfigError(
                f"kind {name!r} draws the tokens of a grid one by one, and {base.modality} has no tokenizer on a grid: "
                "describe kinds of your own with --kind"
            )
        if name == "one-by-one":
            yield Kind(name, ("tokenizer.order=raster",))
        else:
            grid = json.dumps([scales[-1]] * passes)
            constant = "sampling.guidance_schedule=constant"
            yield Kind(name, (f"tokenizer.scales={grid}", f"tokenizer.order={name}", constant))
