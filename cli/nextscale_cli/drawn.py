"""Samples to files as they are drawn, in memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nextscale_cli.output import Output

if TYPE_CHECKING:
    from nextscale.api import Model
    from nextscale.data import Samples

SHOWN = 64
"""Samples on the sheet of a draw."""
FILMED = 8
"""Samples in its film strip, which needs them decoded after each scale."""

Tell = Callable[["Samples", int], Sequence[dict[str, str]]]
"""For a batch and the number of its first sample: where each sample came from (``nextscale.provenance``)."""


def write_drawn(
    model: Model, batches: Iterator[Samples], number: int, output: Output, tell: Tell, film: bool, files: bool
) -> None:
    """Write a draw of ``number`` samples: a sheet and a film strip of the first ones, a file per sample, and the
    modality's archives.

    The first Ctrl-C (or SIGTERM) ends the draw after the batch in progress, the second one at once. All files are whole
    either way.

    Raises:
        Interrupted: after a signal. What was drawn is written.
    """
    from nextscale.training.signals import Interrupted, InterruptFlag

    batches = chain([next(batches)], batches)  # wrong settings raise their errors here, before there is a folder
    folder = output.open()
    writer = _Writer(model, folder, tell, min(number, SHOWN), film, files)
    with InterruptFlag() as flag, _progress(number) as advance:

        def passing() -> Iterator[Samples]:
            for batch in batches:
                yield writer.write(batch)
                advance(writer.done)
                if flag.raised:
                    return

        taken = passing()
        archives = model.modality.write_archives(taken, writer.single, model.description) if files else []
        for _ in taken:  # whatever is left
            pass
    writer.write_overview()
    if files:
        typer.echo(f"{writer.single} ({writer.done} files)")
    for archive in archives:
        typer.echo(archive)
    if flag.raised and writer.done < number:
        raise Interrupted(f"interrupted: {writer.done} of {number} samples are in {folder}", 128 + flag.signal)


def write_files(model: Model, drawn: Samples, folder: Path) -> None:
    """Write all samples of a small draw: a file each, and the modality's archives."""
    modality, description = model.modality, model.description
    written = modality.write_samples(drawn.samples, folder, description, metadata=drawn.metadata)
    typer.echo(f"{folder} ({len(written)} files)")
    for archive in modality.write_archives(iter([drawn]), folder, description):
        typer.echo(archive)


class _Writer:
    """Writes batches, and the overview once it has enough samples for it."""

    def __init__(self, model: Model, folder: Path, tell: Tell, shown: int, film: bool, files: bool) -> None:
        self.model, self.folder, self.single = model, folder, folder / "single"
        self.tell, self.shown, self.film, self.files = tell, shown, film, files
        self.done = 0
        self.kept: list[Samples] = []

    def write(self, batch: Samples) -> Samples:
        """Write a batch, and return it with its metadata."""
        batch = replace(batch, metadata=self.tell(batch, self.done))
        if self.files:
            self.model.modality.write_samples(
                batch.samples, self.single, self.model.description, first=self.done, metadata=batch.metadata
            )
        if self.done < self.shown:
            self.kept.append(_head(batch, self.shown - self.done, FILMED - self.done if self.film else 0))
        self.done += len(batch.samples)
        if self.done >= self.shown:
            self.write_overview()
        return batch

    def write_overview(self) -> None:
        """Write the sheet and the film strip of the samples so far, once."""
        from nextscale.api import join
        from nextscale.captions import class_captions, scale_captions

        if not self.kept:
            return
        modality, description = self.model.modality, self.model.description
        sheet = modality.concatenate([each.samples for each in self.kept])
        named = [class_captions(self.model.conditions, each.conditions) for each in self.kept]
        names = None if None in named else [name for part in named for name in part or ()]
        typer.echo(modality.write_grid(sheet, self.folder / "grid", description, captions=names))
        if self.film:
            steps = join(modality, [each for each in self.kept if each.steps]).steps
            scales = scale_captions(self.model.tokenizer, len(steps))
            typer.echo(modality.write_film(steps, self.folder / "film", description, captions=scales))
        self.kept = []


def _head(batch: Samples, shown: int, filmed: int) -> Samples:
    """The first samples of a batch, and fewer of its steps, on the CPU: the device may need the room."""
    steps = [each[:filmed].to("cpu") for each in batch.steps] if filmed > 0 else []
    conditions = {name: value[:shown] for name, value in batch.conditions.items()}
    return replace(batch, samples=batch.samples[:shown].to("cpu"), steps=steps, conditions=conditions, metadata=())


@contextmanager
def _progress(number: int) -> Iterator[Callable[[int], Any]]:
    """A bar on stderr, if that is a terminal; the block calls the value with how many samples are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("samples"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=number)
        yield lambda done: bar.update(task, completed=done)
