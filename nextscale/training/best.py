"""The weights with the lowest validation loss so far: which of those on the disk may still count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nextscale.errors import CheckpointError
from nextscale.storage.checkpoint_folder import check_checkpoint, set_aside, set_aside_later
from nextscale.storage.files import restore_folder

BEST, FORMER = "best", "best-before"
"""Checkpoints of the best weights so far, and of those that they replaced (kept until the stage ends)."""


def sort_out_best(folder: Path, back_to: int | None, note: Callable[[str], None]) -> bool:
    """Leave no best weights in ``folder`` that are damaged or of a course that is given up.

    They are renamed, and the best weights before them take their place.

    Args:
        back_to: the step that the user goes back to; checkpoints of later steps are renamed as well.
        note: is told, in one line each, what was renamed.

    Returns:
        whether the weights at hand must now be judged too, because they may be better than the best that are left.
    """
    judge = False
    for name in (BEST, FORMER):
        path = folder / name
        restore_folder(path)
        if not path.exists():
            continue
        try:
            step = check_checkpoint(path)["step"]
        except CheckpointError as error:
            note(f"{error}: renamed to {set_aside(path, 'damaged')}")
            judge = True
            continue
        if back_to is not None and step > back_to:
            note(f"renamed the best weights, of the later step {step}, to {set_aside(path, 'abandoned')}")
            judge = True
        elif name == FORMER and not (folder / BEST).exists():
            note(f"the best weights are now those of step {step}")
            path.rename(folder / BEST)
            judge = True
    if back_to is not None:
        for aside in set_aside_later(folder, back_to):
            note(f"renamed a later checkpoint to {aside}")
    # A process may have been killed after it renamed the best weights and before it judged others.
    renamed = any((folder / f"{why}-{BEST}").exists() for why in ("abandoned", "damaged"))
    return judge or (renamed and not (folder / BEST).exists())
