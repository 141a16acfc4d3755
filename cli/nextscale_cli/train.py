"""``nextscale train``"""

from __future__ import annotations

import gc
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale_cli.options import DEFAULT_MODALITY, ConfigFile, Modality, Overrides, Preset

if TYPE_CHECKING:
    from nextscale.config.sections import RunConfig


class Stage(StrEnum):
    all = "all"
    tokenizer = "tokenizer"
    transformer = "transformer"
    scorer = "scorer"


def train(
    overrides: Overrides = None,
    modality: Modality = None,
    preset: Preset = None,
    config: ConfigFile = None,
    stage: Annotated[
        Stage | None,
        typer.Option(
            help="Both stages, or one of them. scorer, on a trained run with --resume auto: for sampling.candidates.",
            show_default="all; transformer with --init-from",
        ),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Fine-tune: start from the settings and weights of this run (or hf:OWNER/NAME), on other data.",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Train for N minutes in all. Without --preset, the size of the models is chosen for the data and this "
            "machine, too.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The run's name.", show_default="the preset's")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder.", show_default="runs/NAME")] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="auto|PATH", help="Continue an existing run: from its latest checkpoint, or this one."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be trained, and exit.")] = False,
) -> None:
    """Train both stages of a model, or one of them.

    Settings: preset, then --config, then KEY=VALUE. A resumed run uses its own settings, then KEY=VALUE.

    --init-from RUN takes the place of a preset. Its tokenizer stays unchanged, unless --stage includes its training.
    """
    import time

    began = time.monotonic()
    from nextscale.config.dump import dump_config
    from nextscale.config.run import NO_PRESET, load_config, load_run_config

    if stage is Stage.scorer and minutes is not None:
        from nextscale.errors import ConfigError

        raise ConfigError("--minutes is for the two stages of a model: set training.scorer.steps with --stage scorer")
    folder = out or (Path("runs") / name if name else None) or _folder_of(resume)
    settings, report = None, {}
    if resume is None or folder is None or not (folder / "config.yaml").exists():
        named: dict[str, Any] = {"default_modality": DEFAULT_MODALITY, "start": init_from}
        sized = minutes is not None and preset is None and config is None and init_from is None
        settings = load_config(modality, NO_PRESET if sized else preset, config, overrides or (), **named)
        folder = folder or _default_folder(settings, init_from)
        if minutes is not None:
            from nextscale.training.folder import refuse_existing_run
            from nextscale.training.plan import load_planned

            if resume is None and not dry_run:
                refuse_existing_run(folder)  # before the pilot
            planned = load_planned(minutes, modality, preset, config, overrides or (), **named, began=began)
            settings, report = planned.config, planned.report
            if not dry_run:
                typer.echo("\n".join(planned.lines()), err=True)
    if settings is None or (resume is not None and (folder / "config.yaml").exists()):
        more = [] if minutes is None else [f"training.minutes={minutes:g}"]
        settings = load_run_config(folder, [*(overrides or ()), *more])
        _check_same(settings, folder, modality, preset, config)

    if dry_run and stage == "scorer":
        from nextscale.errors import ConfigError

        raise ConfigError("--dry-run describes the two stages of a model: leave it out with --stage scorer")
    if dry_run:
        # The process ends soon: garbage collection while torch loads, and again at exit, would take half a second.
        gc.disable()
        typer.echo(dump_config(settings), nl=False)
        from nextscale.training.describe import describe
        from nextscale_cli.tables import print_results

        typer.echo()
        print_results({"run": str(folder), **report, **describe(settings)})
        gc.freeze()
        gc.enable()
        return

    from nextscale.training.run import train as train_run

    stage = stage or (Stage.all if settings.training.init is None else Stage.transformer)
    train_run(settings, folder, stage.value, resume, began)


def _default_folder(settings: RunConfig, init_from: Path | None) -> Path:
    from nextscale.config.run import NO_PRESET
    from nextscale.hub import outputs_folder

    if init_from is not None:
        return Path("runs") / f"{outputs_folder(init_from).resolve().name}-tuned"
    named = settings.preset not in (None, NO_PRESET)
    return Path("runs") / (str(settings.preset) if named else settings.modality)


def _folder_of(resume: str | None) -> Path | None:
    """The run that holds the checkpoint to resume from; None for ``auto``, or if no run holds it."""
    if resume in (None, "auto"):
        return None
    path = Path(str(resume))
    return next((folder for folder in (path, *path.parents) if (folder / "config.yaml").exists()), None)


def _check_same(
    settings: RunConfig, folder: Path, modality: str | None, preset: str | None, config: Path | None
) -> None:
    """A resumed run keeps its configuration; report it if the command line names another one."""
    from nextscale.errors import ConfigError

    for kind, asked, kept in (("modality", modality, settings.modality), ("preset", preset, settings.preset)):
        if asked is not None and asked != kept:
            raise ConfigError(f"run folder {folder} has {kind} {kept!r}, not {asked!r}: name another folder with --out")
    if config is not None:
        typer.echo(f"note: {config} is not read again: the run continues with {folder / 'config.yaml'}", err=True)
