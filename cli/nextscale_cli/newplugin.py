"""``nextscale plugins new``: a complete plugin from a template, ready to be changed."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from typing import Annotated

import typer

TEMPLATES = Path(__file__).parent / "templates"
SIDES = {1: 64, 2: 16, 3: 8}
"""Places per side of the placeholder samples, by the number of axes."""
SCALES = {1: "1, 2, 4, 8", 2: "1, 2, 4, 8", 3: "1, 2, 4"}
"""Scales that fit the placeholder samples once their sides are halved."""


def new(
    name: Annotated[str, typer.Argument(help="What users will write after --modality.")],
    grid: Annotated[
        int | None,
        typer.Option("--grid", min=1, max=3, help="Samples on a grid of so many axes.", show_default="2"),
    ] = None,
    custom: Annotated[bool, typer.Option("--custom", help="Samples of any kind: a tokenizer of your own.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where to.", show_default="nextscale-NAME")] = None,
) -> None:
    """Write a new plugin: a distribution that installs, trains on placeholder data and passes its own tests.

    Comments that begin with REPLACE say what to change.
    """
    from nextscale.errors import ConfigError

    if custom and grid is not None:
        raise ConfigError("--grid and --custom exclude each other: name one")
    folder = out or Path(f"nextscale-{name}")
    _check_name(name)
    if folder.exists():
        raise ConfigError(f"{folder} exists: name another folder with --out")
    write_plugin(name, folder, None if custom else grid or 2)
    typer.echo(f"{folder}: next, pip install -e '{folder}[test]' and nextscale train -m {name}")


def write_plugin(name: str, folder: Path, axes: int | None) -> None:
    """Fill the template (``axes`` None: the custom one) and put it at ``folder``, whole or not at all."""
    from nextscale.storage.files import partial_name, remove, replace_folder, writing

    source, partial = TEMPLATES / ("custom" if axes is None else "grid"), partial_name(folder)
    with writing(folder):
        remove(partial)
        try:
            for path in sorted(source.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    target = partial / _filled(str(path.relative_to(source)), name, axes)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_text(_filled(path.read_text(encoding="utf-8"), name, axes), encoding="utf-8")
            replace_folder(partial, folder)
        except BaseException:
            remove(partial)
            raise


def _filled(text: str, name: str, axes: int | None) -> str:
    """The template's text with the plugin's name in the place of "example"."""
    module = name.replace("-", "_")
    text = text.replace("nextscale_example", f"nextscale_{module}").replace("test_example", f"test_{module}")
    text = text.replace("Example", "".join(part.capitalize() for part in name.split("-")))
    text = re.sub("example(?!s)", name, text)  # the contract's setting ``examples`` stays
    if axes is not None:
        text = text.replace("AXES = 2", f"AXES = {axes}").replace("SIDE = 16", f"SIDE = {SIDES[axes]}")
        text = text.replace(SCALES[2], SCALES[axes])
    return text


def _check_name(name: str) -> None:
    from nextscale.errors import ConfigError
    from nextscale.plugins import discover

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(name) or len(name) > 40:
        raise ConfigError(
            f"{name!r} is no name for a plugin: use lower-case letters, digits and hyphens, such as heart-rate"
        )
    if name in discover().modalities:
        raise ConfigError(f"a modality {name!r} is installed already: choose another name")
