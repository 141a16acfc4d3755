"""``nextscale sample``"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.hub import outputs_folder
from nextscale_cli.drawn import FILMED, write_drawn
from nextscale_cli.options import Checkpoint, Device, Precision, Run
from nextscale_cli.output import Output

if TYPE_CHECKING:
    from nextscale.api import Model
    from nextscale.data import Samples

Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Sampling settings (guidance=2, top_k=64,32) and conditions. A class is given by its name, or by its "
        "index if no class has this name (label=cat, label=3), or one per sample (label=cat,dog). Numbers are in the "
        "units of the data (weight=0.3). label=all, the default, takes every class in turn, and label=null none.",
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
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples drawn at once: more take more memory. It does not change them.")
    ] = 64,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Draw samples from a trained run.

    Files are written as samples are drawn, and tell where they came from where their format can.
    """
    output = Output("sample", locals(), outputs_folder(run) / "samples" / f"seed-{seed}")
    sampling, conditions = split([*(settings or []), *([] if size is None else [f"size={size}"])])
    import nextscale

    model = nextscale.load(run, device=device, precision=precision, checkpoint=checkpoint)
    check_names(model, conditions)
    batches = model.stream(
        number, seed=seed, sampling=sampling, conditions=conditions, return_steps=FILMED if film else 0,
        batch_size=batch_size,
    )  # fmt: skip
    from nextscale.provenance import provenance

    def tell(drawn: Samples, first: int) -> list[dict[str, str]]:
        return provenance(model, run, drawn, seed, first, sampling, checkpoint)

    write_drawn(model, batches, number, output, tell, film, files)


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
