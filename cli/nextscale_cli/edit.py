"""``nextscale edit``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale_cli.options import Compile, Device, Precision, Run
from nextscale_cli.sample import Settings, check_names, make_folder, split

if TYPE_CHECKING:
    from torch import Tensor

    from nextscale.api import Model


def edit(
    run: Run,
    settings: Settings = None,
    sample: Annotated[Path | None, typer.Option("--sample", "--image", help="The file to edit.")] = None,
    mask: Annotated[Path | None, typer.Option(help="A file as large as it: what is white is drawn anew.")] = None,
    box: Annotated[
        str | None,
        typer.Option(
            metavar="START,..,END,..",
            help="Draw a box anew: where it starts along each axis of the sample, then where it ends (y0,x0,y1,x1).",
        ),
    ] = None,
    outpaint: Annotated[bool, typer.Option("--outpaint", help="Keep the mask or box, draw the rest anew.")] = False,
    label: Annotated[str | None, typer.Option(help="The same as label=...: the class to draw.")] = None,
    guidance: Annotated[float | None, typer.Option(help="The same as guidance=...")] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many versions.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Version i is a function of the seed and i alone.")] = 0,
    paste: Annotated[
        bool, typer.Option("--paste", help="Put what is kept of the file itself over the result.")
    ] = False,
    feather: Annotated[int, typer.Option(min=0, metavar="PX", help="With --paste: fade in over so many pixels.")] = 0,
    replay: Annotated[
        bool, typer.Option("--replay", help="Keep tokens only, as published VAR does; what is kept changes more.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where to.", show_default="RUN/edits/seed-SEED")] = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    compile: Compile = False,
) -> None:
    """Draw part of a sample anew, or what lies around it.

    Where samples have no places to mask, the sample is a part, and what is drawn completes it, to size=N.

    Writes grid.png (the sample, what is kept of it, and the versions) and a file for each version.
    """
    from nextscale.errors import ConfigError

    if sample is None:
        raise ConfigError("--sample FILE is missing: the file to edit (images: --image)")
    missing = ConfigError("say what is drawn anew: either --mask FILE or --box START,..,END,..")
    if mask is not None and box is not None:
        raise missing
    if feather and not paste:
        raise ConfigError("--feather belongs to --paste")
    corners = None if box is None else _corners(box)
    sampling, conditions = split([*(settings or []), *_named(label=label, guidance=guidance)])
    import nextscale
    from nextscale.tokens.capabilities import Completes

    model = nextscale.load(run, device=device, precision=precision, compile=compile)
    if mask is None and box is None:
        if not isinstance(model.tokenizer, Completes):
            raise missing
        _complete(model, sample, sampling, conditions, number, seed, out or run / "edits" / f"seed-{seed}")
        return
    check_names(model, conditions)
    original, marked = model.modality.read_sample(sample, model.tokenizer, mask)
    keep = _keep(original, marked, corners, outpaint)
    copies = model.modality.concatenate([original] * number)
    edited = model.edit(
        copies, keep, seed=seed, sampling=sampling, conditions=conditions, replay=replay, paste=paste, feather=feather
    ).samples

    folder = make_folder(out or run / "edits" / f"seed-{seed}")
    shown = original.where(keep, original.new_zeros(()))
    sheet = model.modality.concatenate([original, shown, edited.to(original)])
    columns = len(sheet) if len(sheet) <= 8 else None
    typer.echo(model.modality.write_grid(sheet, folder / "grid", model.description, columns))
    written = model.modality.write_samples(edited, folder / "single", model.description)
    typer.echo(f"{folder / 'single'} ({len(written)} files)")


def _complete(
    model: Model,
    sample: Path,
    sampling: dict[str, Any],
    conditions: dict[str, Any],
    number: int,
    seed: int,
    folder: Path,
) -> None:
    """Versions of what the part in a file may belong to."""
    check_names(model, conditions)
    part, _ = model.modality.read_sample(sample, model.tokenizer)
    copies = model.modality.concatenate([part] * number)
    drawn = model.complete(copies, seed=seed, sampling=sampling, conditions=conditions, return_steps=True)
    make_folder(folder)
    sheet = model.modality.concatenate([part, drawn.samples])
    typer.echo(model.modality.write_grid(sheet, folder / "grid", model.description))
    typer.echo(model.modality.write_film([copies, *drawn.steps], folder / "film", model.description))
    written = model.modality.write_samples(drawn.samples, folder / "single", model.description)
    typer.echo(f"{folder / 'single'} ({len(written)} files)")


def _keep(original: Tensor, marked: Tensor | None, corners: list[int] | None, outpaint: bool) -> Tensor:
    """*grid booleans, or 1 *grid: what is kept."""
    from nextscale.errors import NextscaleError
    from nextscale.sampling.editing import as_mask, box_mask, check_grid

    check_grid(original)
    chosen = box_mask(corners or [], original.shape[2:]) if marked is None else as_mask(marked, original)
    keep = chosen if outpaint else ~chosen
    if bool(keep.all()):
        raise NextscaleError("the mask leaves nothing to draw anew")
    return keep


def _named(**options: Any) -> list[str]:
    return [f"{name}={value}" for name, value in options.items() if value is not None]


def _corners(text: str) -> list[int]:
    from nextscale.errors import ConfigError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--box {text!r} should be whole numbers separated by commas, such as 8,8,24,24") from None
