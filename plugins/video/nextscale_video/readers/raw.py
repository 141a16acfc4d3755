"""What readers of videos give: videos that are decoded when they are asked for, and the splits they lie in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nextscale.plugin import file_print


def no_rate() -> None:
    """The rate of videos without time stamps."""


@dataclass(frozen=True)
class RawVideo:
    """One video, as a player shows it.

    Attributes:
        name: what messages call it.
        frames: gives its frames as they are read, H W C of uint8, C 1 or 3. With a number of frames per second, the
            video is resampled to it by its time stamps.
        rate: frames per second; None where there are no time stamps. Only such videos are not resampled.
        endless: whether the format says nowhere how long the file is, so that a cut end may go unnoticed.
        identity: what tells its content from another's, without a path or a time (see ``toolkit.fingerprint``).
    """

    name: str
    frames: Callable[[float | None], Iterable[np.ndarray]]
    rate: Callable[[], float | None] = no_rate
    identity: Callable[[], object] = str
    endless: bool = False


@dataclass(frozen=True)
class RawSplit:
    """``labels`` are positions in ``classes``, one per video, or None. ``others`` were found beside the videos, and are
    left out."""

    videos: list[RawVideo]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    others: list[Path] = field(default_factory=list)


RawSplits = dict[str, RawSplit]
"""``train``, and where the source has them ``validation`` and ``test``."""


def file_identity(path: Path, source: Path) -> str:
    """A file's name relative to the source, and its content: the same where the source was moved.

    Raises:
        DataError: the file cannot be read.
    """
    return f"{path.relative_to(source).as_posix()} {file_print(path)}"
