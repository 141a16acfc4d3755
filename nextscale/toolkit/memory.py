"""Samples that the user holds in memory, as a file of arrays that a run can be resumed from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nextscale.errors import DataError
from nextscale.storage.files import replacing


def store_arrays(path: Path, **values: Any) -> Path:
    """Write arrays (or lists of arrays of one shape, pictures, tensors) as ``path`` with the suffix .npz.

    Raises:
        DataError: something that is no array, or arrays of different shapes.
    """
    arrays = {}
    for name, value in values.items():
        try:
            arrays[name] = np.stack([np.asarray(one) for one in value])
        except (TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{name} must be an array, or a list of arrays of one shape ({reason})") from None
        if arrays[name].dtype == object:
            raise DataError(f"{name} must hold numbers or texts of one kind, not {type(value[0]).__name__}")
    path = path.parent / f"{path.name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return path
