"""The base class of modalities on a regular grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale.modality import Modality


class GridModality(Modality):
    """A ``Modality`` whose samples are tensors B C *grid, with values in [-1, 1]."""

    def concatenate(self, batches: list[Tensor]) -> Tensor:
        return batches[0] if len(batches) == 1 else torch.cat(batches)

    def write_parts(
        self,
        parts: Iterable[Tensor],
        path: Path,
        description: Mapping[str, Any],
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        """Joins the parts along the first axis of the grid and writes the whole sample."""
        told = None if metadata is None else [metadata]
        return self.write_samples(torch.cat(list(parts), 2), path, description, metadata=told)[0]
