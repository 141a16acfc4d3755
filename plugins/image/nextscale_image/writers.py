"""Write samples as PNG: single files, grids and coarse-to-fine film strips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from nextscale.plugin import film_strip, tile, to_uint8, write_png


def write_samples(
    samples: Tensor, folder: Path, first: int = 0, metadata: Sequence[Mapping[str, str]] | None = None
) -> list[Path]:
    """Write B C H W in [-1, 1] as ``000000.png`` … in ``folder``, one file per sample, numbered from ``first`` on.

    Args:
        metadata: for each sample, texts that the file carries (``write_png``).
    """
    told = metadata or [{}] * len(samples)
    return [
        write_png(image, Path(folder) / f"{first + i:06d}.png", texts)
        for i, (image, texts) in enumerate(zip(to_uint8(samples), told, strict=True))
    ]


def write_grid(samples: Tensor, path: Path, columns: int | None = None, captions: Sequence[str] | None = None) -> Path:
    """Write B C H W as one picture, row by row; about square if ``columns`` is None."""
    images = to_uint8(samples)
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    return write_png(tile(images, columns, captions), Path(path))


def write_film(steps: Sequence[Tensor], path: Path, captions: Sequence[str] | None = None) -> Path:
    """Write a film strip (``film_strip``). ``steps[k]`` is B C H W."""
    return write_png(film_strip([to_uint8(step) for step in steps], captions), Path(path))
