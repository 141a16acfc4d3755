"""``nextscale edit``"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.hub import outputs_folder
from nextscale_cli.drawn import write_files
from nextscale_cli.options import Checkpoint, Device, Precision, Run
from nextscale_cli.output import Output
from nextscale_cli.sample import Settings, check_names, split

if TYPE_CHECKING:
    from torch import Tensor

    from nextscale.api import Model
    from nextscale.data import Samples

GIVEN = "given"
"""The caption of the part of a sample that was read from a file."""


def edit(
    run: Run,
    settings: Settings = None,
    sample: Annotated[Path | None, typer.Option("--sample", "--image", help="The file to edit.")] = None,
    mask: Annotated[Path | None, typer.Option(help="A mask file of the same size; white is redrawn.")] = None,
    box: Annotated[
        str | None,
        typer.Option(
            metavar="START,..,END,..",
            help="Redraw a box: where it starts along each axis of the sample, then where it ends (y0,x0,y1,x1).",
        ),
    ] = None,
    outpaint: Annotated[bool, typer.Option("--outpaint", help="Keep the mask or box, redraw the rest.")] = False,
    label: Annotated[str | None, typer.Option(help="Short for label=...: the class to draw.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Short for guidance=...")] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Number of versions to draw.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Version i depends only on the seed and i.")] = 0,
    paste: Annotated[bool, typer.Option("--paste", help="Paste the kept part of the file over the result.")] = False,
    feather: Annotated[int, typer.Option(min=0, metavar="PX", help="With --paste: fade in over this many pixels.")] = 0,
    replay: Annotated[
        bool, typer.Option("--replay", help="Keep only tokens, as published VAR does; the kept part changes more.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Output folder.", show_default="RUN/edits/seed-SEED")] = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Redraw part of a sample, or its surroundings.

    If samples of this kind cannot be masked, the file holds a part of a sample, which is completed to size=N.

    Writes grid.png (the sample, its kept part, and the versions) and one file per version.
    """
    output = Output("edit", locals(), outputs_folder(run) / "edits" / f"seed-{seed}")
    from nextscale.errors import ConfigError

    if sample is None:
        raise ConfigError("--sample FILE is missing: the file to edit (images: --image)")
    missing = ConfigError("say what to redraw: either --mask FILE or --box START,..,END,..")
    if mask is not None and box is not None:
        raise missing
    if feather and not paste:
        raise ConfigError("--feather needs --paste")
    corners = None if box is None else _corners(box)
    sampling, conditions = split([*(settings or []), *_named(label=label, guidance=guidance)])
    import nextscale
    from nextscale.captions import ORIGINAL
    from nextscale.provenance import provenance
    from nextscale.tokens.capabilities import Completes

    model = nextscale.load(run, device=device, precision=precision, checkpoint=checkpoint)

    def tell(drawn: Samples) -> list[dict[str, str]]:
        return provenance(model, run, drawn, seed, 0, sampling, checkpoint, edited=sample.name)

    if mask is None and box is None:
        if not isinstance(model.tokenizer, Completes):
            raise missing
        _complete(model, sample, sampling, conditions, number, seed, output, tell)
        return
    check_names(model, conditions)
    original, marked = model.modality.read_sample(sample, model.tokenizer, mask)
    keep = _keep(original, marked, corners, outpaint)
    copies = model.modality.concatenate([original] * number)
    drawn = model.edit(
        copies, keep, seed=seed, sampling=sampling, conditions=conditions, replay=replay, paste=paste, feather=feather
    )

    folder = output.open()
    shown = original.where(keep, original.new_zeros(()))
    sheet = model.modality.concatenate([original, shown, drawn.samples.to(original)])
    columns = len(sheet) if len(sheet) <= 8 else None
    captions = [ORIGINAL, "kept", *versions(model, drawn)]
    typer.echo(model.modality.write_grid(sheet, folder / "grid", model.description, columns, captions))
    write_files(model, replace(drawn, metadata=tell(drawn)), folder / "single")


def _complete(
    model: Model,
    sample: Path,
    sampling: dict[str, Any],
    conditions: dict[str, Any],
    number: int,
    seed: int,
    output: Output,
    tell: Callable[[Samples], list[dict[str, str]]],
) -> None:
    """Write versions of a whole sample that completes the part in a file."""
    check_names(model, conditions)
    part, _ = model.modality.read_sample(sample, model.tokenizer)
    copies = model.modality.concatenate([part] * number)
    drawn = model.complete(copies, seed=seed, sampling=sampling, conditions=conditions, return_steps=True)
    # Drawn samples may lie on another device than the part that was read.
    samples, *steps = (each.to("cpu") for each in (drawn.samples, *drawn.steps))
    folder = output.open()
    sheet = model.modality.concatenate([part, samples])
    captions = [GIVEN, *versions(model, drawn)]
    typer.echo(model.modality.write_grid(sheet, folder / "grid", model.description, captions=captions))
    captions = [GIVEN, *(f"step {k}" for k in range(len(steps)))]
    typer.echo(model.modality.write_film([copies, *steps], folder / "film", model.description, captions))
    write_files(model, replace(drawn, samples=samples, metadata=tell(drawn)), folder / "single")


def versions(model: Model, drawn: Samples) -> list[str]:
    """A caption for each version that was drawn: its number, and its class where one was asked for."""
    from nextscale.captions import SEPARATOR, class_captions

    number = len(drawn.samples)
    names = class_captions(model.conditions, drawn.conditions)
    return [f"version {i}{f'{SEPARATOR}{names[i]}' if names else ''}" for i in range(number)]


def _keep(original: Tensor, marked: Tensor | None, corners: list[int] | None, outpaint: bool) -> Tensor:
    """*grid or 1 *grid booleans: the part to keep."""
    from nextscale.errors import NextscaleError
    from nextscale.sampling.editing import as_mask, box_mask, check_grid

    check_grid(original)
    chosen = box_mask(corners or [], original.shape[2:]) if marked is None else as_mask(marked, original)
    keep = chosen if outpaint else ~chosen
    if bool(keep.all()):
        raise NextscaleError("the mask leaves nothing to redraw")
    return keep


def _named(**options: Any) -> list[str]:
    return [f"{name}={value}" for name, value in options.items() if value is not None]


def _corners(text: str) -> list[int]:
    from nextscale.errors import ConfigError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--box {text!r} should be whole numbers separated by commas, such as 8,8,24,24") from None
