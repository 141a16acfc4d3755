"""``nextscale predict``"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from nextscale.hub import outputs_folder
from nextscale_cli.drawn import SHOWN
from nextscale_cli.edit import GIVEN
from nextscale_cli.options import Checkpoint, Device, Precision, Run
from nextscale_cli.output import Output
from nextscale_cli.sample import Settings, check_names, split


def predict(
    run: Run,
    settings: Settings = None,
    sample: Annotated[Path | None, typer.Option("--sample", "--video", help="The file to continue.")] = None,
    frames: Annotated[
        int, typer.Option(min=1, metavar="N", help="Keep its first N frames (places along the first axis).")
    ] = 1,
    pieces: Annotated[
        int, typer.Option(min=1, help="Continue this many times, each time from the last N frames drawn.")
    ] = 1,
    label: Annotated[str | None, typer.Option(help="Short for label=...: the class to draw.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Short for guidance=...")] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Number of versions to draw.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Version i depends only on the seed and i.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Output folder.", show_default="RUN/predictions/seed-SEED")] = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Continue a sample from its start.

    Writes one file per version and, if --pieces is 1, grid.png (the known start, then the first versions).
    """
    output = Output("predict", locals(), outputs_folder(run) / "predictions" / f"seed-{seed}")
    from nextscale.errors import ConfigError

    if sample is None:
        raise ConfigError("--sample FILE is missing: the file to continue (videos: --video)")
    short = {"label": label, "guidance": guidance}
    sampling, conditions = split(
        [*(settings or []), *(f"{name}={value}" for name, value in short.items() if value is not None)]
    )
    import nextscale
    from nextscale.data import Samples
    from nextscale.provenance import provenance
    from nextscale.randomness import mixed_seed
    from nextscale.sampling.continuation import go_on, held

    model = nextscale.load(run, device=device, precision=precision, checkpoint=checkpoint)
    check_names(model, conditions)
    original, _ = model.modality.read_sample(sample, model.tokenizer)
    known = held(original, frames)
    given = model.condition_values({spec.name: None for spec in model.conditions} | conditions, 1)
    drawn, folder = [known], Path()
    for i in range(number):
        version = mixed_seed(seed, i) >> 32
        parts = go_on(model, known, frames, pieces, version, sampling=sampling, conditions=conditions)
        first = next(parts).to(known)
        if i == 0:  # wrong settings have raised their errors by now
            folder = output.open()
        told = provenance(model, run, Samples(first, [], given), seed, i, sampling, checkpoint, continued=sample.name)[
            0
        ]
        path = folder / f"{i:06d}"
        typer.echo(model.modality.write_parts(chain([first], parts), path, model.description, metadata=told))
        drawn += [first] if pieces == 1 and i < SHOWN else []
    if pieces == 1:
        joined = model.modality.concatenate(drawn)
        captions = [GIVEN, *(f"version {i}" for i in range(min(number, SHOWN)))]
        typer.echo(model.modality.write_grid(joined, folder / "grid", model.description, captions=captions))
