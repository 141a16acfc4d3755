"""``nextscale sample``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nextscale_cli.options import Device, Run

Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Sampling settings (guidance=2, top_k=64,32) and conditions (label=3; label=all, the default, takes "
        "every class in turn).",
    ),
]


def sample(
    run: Run,
    settings: Settings = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Sample i is a function of the seed and i alone.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where to.", show_default="RUN/samples/seed-SEED")] = None,
    film: Annotated[bool, typer.Option("--film/--no-film", help="Also the coarse-to-fine film strip.")] = True,
    files: Annotated[bool, typer.Option("--files/--no-files", help="Also a file for each sample.")] = True,
    device: Device = "auto",
) -> None:
    """Draw samples from a trained run."""
    sampling, conditions = _split(settings or [])
    import nextscale
    from nextscale.errors import ConfigError, unknown
    from nextscale.files import writing

    model = nextscale.load(run, device=device)
    names = [spec.name for spec in model.conditions]
    for name in conditions:
        if name not in names:
            from nextscale.config import SamplingConfig

            known = [*names, *SamplingConfig.model_fields]
            raise ConfigError(unknown("condition or sampling setting", name, known))
    drawn = model.generate(number, seed=seed, sampling=sampling, conditions=conditions, return_steps=film)

    folder = out or run / "samples" / f"seed-{seed}"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    typer.echo(model.modality.write_grid(drawn.samples, folder / "grid.png"))
    if film:
        typer.echo(model.modality.write_film(drawn.steps, folder / "film.png"))
    if files:
        single = folder / "single"
        written = model.modality.write_samples(drawn.samples, single)
        typer.echo(f"{single} ({len(written)} files)")


def _split(settings: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sampling settings, checked, and conditions, whose names and ranges only the trained model knows."""
    import yaml

    from nextscale.config import SamplingConfig
    from nextscale.configtree import parse_override
    from nextscale.errors import ConfigError
    from nextscale.runconfig import parse_section

    sampling: list[str] = []
    conditions: dict[str, Any] = {}
    for text in settings:
        (name, *rest), value = parse_override(text)
        if name in SamplingConfig.model_fields:
            sampling.append(text)
        elif rest:
            raise ConfigError(f"{text!r}: a condition or sampling setting has no keys of its own")
        else:
            try:
                parsed = yaml.safe_load(value)
                if isinstance(parsed, str) and "," in parsed:
                    parsed = [yaml.safe_load(part) for part in parsed.split(",")]
            except yaml.YAMLError as error:
                raise ConfigError(f"{text!r}: the value is not valid YAML") from error
            conditions[name] = parsed
    return parse_section(SamplingConfig, sampling), conditions
