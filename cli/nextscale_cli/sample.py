"""``nextscale sample``"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale_cli.options import Compile, Device, Precision, Run
from nextscale_cli.output import Output

if TYPE_CHECKING:
    from nextscale.api import Model

Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Sampling settings (guidance=2, top_k=64,32) and conditions. A class is given by its name, or by its "
        "index if no class has this name (label=cat, label=3), or one per sample (label=cat,dog); label=all, the "
        "default, takes every class in turn, and label=null none.",
    ),
]


def sample(
    run: Run,
    settings: Settings = None,
    number: Annotated[int, typer.Option("--number", "--num", "-n", min=1, help="Number of samples.")] = 16,
    size: Annotated[
        int | None, typer.Option(help="Short for size=...: the size of the samples, if it can be chosen.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Sample i depends only on the seed and i.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Output folder.", show_default="RUN/samples/seed-SEED")] = None,
    film: Annotated[bool, typer.Option("--film/--no-film", help="Also write a coarse-to-fine film strip.")] = True,
    files: Annotated[bool, typer.Option("--files/--no-files", help="Also write one file per sample.")] = True,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="best|last", help="Sample a training that is not finished: its best or its latest weights."
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    compile: Compile = False,
) -> None:
    """Draw samples from a trained run."""
    output = Output("sample", locals(), run / "samples" / f"seed-{seed}")
    sampling, conditions = split([*(settings or []), *([] if size is None else [f"size={size}"])])
    import nextscale
    from nextscale.captions import class_captions, scale_captions

    model = nextscale.load(run, device=device, precision=precision, compile=compile, checkpoint=checkpoint)
    check_names(model, conditions)
    drawn = model.generate(number, seed=seed, sampling=sampling, conditions=conditions, return_steps=film)

    folder = output.open()
    names = class_captions(model.conditions, drawn.conditions)
    typer.echo(model.modality.write_grid(drawn.samples, folder / "grid", model.description, captions=names))
    if film:
        scales = scale_captions(model.tokenizer, len(drawn.steps))
        typer.echo(model.modality.write_film(drawn.steps, folder / "film", model.description, captions=scales))
    if files:
        single = folder / "single"
        written = model.modality.write_samples(drawn.samples, single, model.description)
        typer.echo(f"{single} ({len(written)} files)")


def check_names(model: Model, conditions: Mapping[str, Any]) -> None:
    """Raise ConfigError for a name that is neither a condition of this model nor a sampling setting."""
    from nextscale.config.sections import SamplingConfig
    from nextscale.errors import ConfigError, unknown

    names = [spec.name for spec in model.conditions]
    for name in conditions:
        if name not in names:
            raise ConfigError(unknown("condition or sampling setting", name, [*names, *SamplingConfig.model_fields]))


def split(settings: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Checked sampling settings, and conditions as typed: only the trained model knows their names and classes."""
    from nextscale.config.run import parse_section
    from nextscale.config.sections import SamplingConfig
    from nextscale.config.tree import parse_override
    from nextscale.errors import ConfigError

    sampling: list[str] = []
    conditions: dict[str, str] = {}
    for text in settings:
        (name, *rest), value = parse_override(text)
        if name in SamplingConfig.model_fields:
            sampling.append(text)
        elif rest:
            raise ConfigError(f"{text!r}: a condition or sampling setting has no sub-keys")
        else:
            conditions[name] = value
    return parse_section(SamplingConfig, sampling), conditions
