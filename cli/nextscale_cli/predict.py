"""``nextscale predict``"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from nextscale_cli.options import Compile, Device, Precision, Run
from nextscale_cli.sample import Settings, check_names, make_folder, split


def predict(
    run: Run,
    settings: Settings = None,
    sample: Annotated[Path | None, typer.Option("--sample", "--video", help="The file to go on from.")] = None,
    frames: Annotated[
        int, typer.Option(min=1, metavar="N", help="Keep its first N frames (places along the first axis).")
    ] = 1,
    pieces: Annotated[
        int, typer.Option(min=1, help="Go on so many times, each time from the last N frames of what was drawn.")
    ] = 1,
    label: Annotated[str | None, typer.Option(help="The same as label=...: the class to draw.")] = None,
    guidance: Annotated[float | None, typer.Option(help="The same as guidance=...")] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many versions.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Version i is a function of the seed and i alone.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where to.", show_default="RUN/predictions/seed-SEED")] = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    compile: Compile = False,
) -> None:
    """Go on from the start of a sample.

    Writes a file for each version, and grid.png (the known start, then the versions) where --pieces is 1.
    """
    from nextscale.errors import ConfigError

    if sample is None:
        raise ConfigError("--sample FILE is missing: the file to go on from (videos: --video)")
    given = {"label": label, "guidance": guidance}
    sampling, conditions = split(
        [*(settings or []), *(f"{name}={value}" for name, value in given.items() if value is not None)]
    )
    import nextscale
    from nextscale.randomness import mixed_seed
    from nextscale.sampling.continuation import go_on, held

    model = nextscale.load(run, device=device, precision=precision, compile=compile)
    check_names(model, conditions)
    original, _ = model.modality.read_sample(sample, model.tokenizer)
    known = held(original, frames)
    folder = out or run / "predictions" / f"seed-{seed}"
    drawn = [known]
    for i in range(number):
        version = mixed_seed(seed, i) >> 32
        parts = go_on(model, known, frames, pieces, version, sampling=sampling, conditions=conditions)
        first = next(parts).to(known)
        if i == 0:  # what can be wrong with the settings has shown by now
            make_folder(folder)
        typer.echo(model.modality.write_parts(chain([first], parts), folder / f"{i:06d}", model.description))
        drawn += [first] if pieces == 1 else []
    if pieces == 1:
        joined = model.modality.concatenate(drawn)
        typer.echo(model.modality.write_grid(joined, folder / "grid", model.description))
