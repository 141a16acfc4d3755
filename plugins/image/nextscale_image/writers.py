"""Write samples as PNG: single files, grids and coarse-to-fine film strips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from nextscale.plugin import film_strip, tile, to_uint8, write_png


def write_samples(samples: Tensor, folder: Path) -> list[Path]:
    """Write B C H W in [-1, 1] as ``000000.png`` … in ``folder``, one file per sample."""
    return [write_png(image, Path(folder) / f"{i:06d}.png") for i, image in enumerate(to_uint8(samples))]


def write_grid(samples: Tensor, path: Path, columns: int | None = None, captions: Sequence[str] | None = None) -> Path:
    """Write B C H W as one picture, row by row; about square if ``columns`` is None."""
    images = to_uint8(samples)
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    return write_png(tile(images, columns, captions), Path(path))


def write_film(steps: Sequence[Tensor], path: Path, captions: Sequence[str] | None = None) -> Path:
    """Write a film strip (``film_strip``). ``steps[k]`` is B C H W."""
    return write_png(film_strip([to_uint8(step) for step in steps], captions), Path(path))
