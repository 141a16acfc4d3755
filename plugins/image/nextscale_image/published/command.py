"""The commands ``nextscale import var`` and ``nextscale export var``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def import_run(
    tokenizer: Annotated[Path, typer.Option(metavar="FILE", help="The tokenizer's .pth (vae_ch160v4096z32.pth).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of the run, such as data=IMAGE_FOLDER."),
    ] = None,
    transformer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The transformer's .pth (var_d16.pth); without it, only the tokenizer."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder.", show_default="runs/FILE's name")] = None,
    scales: Annotated[
        str | None, typer.Option(metavar="1,2,3,...", help="Sides of the scales, if the files do not give them.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what the files contain, and stop.")] = False,
) -> None:
    """Make a run from published VAR's .pth files.

    Sizes and variants are detected from names and shapes. Training checkpoints, which hold both models, work too.
    """
    from nextscale.plugin import refuse_existing
    from nextscale_cli.tables import print_results
    from nextscale_image.published.convert import import_var

    folder = out or Path("runs") / (transformer or tokenizer).stem
    if not dry_run:
        refuse_existing(folder)
    found = import_var(tokenizer, transformer, _sides(scales), overrides or ())
    print_results({"run": str(folder), **_summary(found)})
    if not dry_run:
        found.save(folder)


def export_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or hf:OWNER/NAME on the hub.")],
    tokenizer: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write the tokenizer.")] = None,
    transformer: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write the transformer.")] = None,
) -> None:
    """Write a run's models to .pth files under published VAR's names, in float32."""
    from nextscale.plugin import ConfigError
    from nextscale_image.published.export import export_var

    if tokenizer is None and transformer is None:
        raise ConfigError("nothing to write: give a file with --tokenizer, --transformer or both")
    for path in export_var(run, tokenizer, transformer):
        typer.echo(path)


def _sides(text: str | None) -> list[int] | None:
    from nextscale.plugin import ConfigError

    if text is None:
        return None
    try:
        sides = [int(part) for part in text.replace("_", ",").split(",")]
    except ValueError:
        sides = []
    if not sides or min(sides) < 1 or sorted(set(sides)) != sides:
        raise ConfigError(f"--scales {text!r} must be increasing whole numbers separated by commas, such as 1,2,3,4")
    return sides


def _summary(found: Any) -> dict[str, Any]:
    tokenizer, transformer = found.config.tokenizer, found.config.transformer
    count = {name: sum(p.numel() for p in model.parameters()) for name, model in found.models().items()}
    summary: dict[str, Any] = {
        "image": [found.description[key] for key in ("channels", "height", "width")],
        "scales": tokenizer.scales,
        "tokenizer": {
            "parameters": count["tokenizer"],
            "codes": tokenizer.quantizer.codes,
            "latent channels": tokenizer.channels,
            "width": tokenizer.width,
            "multipliers": tokenizer.multipliers,
            "blocks": tokenizer.blocks,
            "phi": tokenizer.quantizer.phi,
        },
    }
    if tokenizer.quantizer.phi == "partial":
        summary["tokenizer"]["phi count"] = tokenizer.quantizer.phi_count
    if found.transformer is not None:
        summary["transformer"] = {
            "parameters": count["transformer"],
            "depth": transformer.depth,
            "width": transformer.model_width,
            "heads": transformer.num_heads,
            "classes": found.transformer.conditioner.specs[0].size,
            "adaln": transformer.adaln,
            "qk_norm": transformer.qk_norm,
        }
    return summary
