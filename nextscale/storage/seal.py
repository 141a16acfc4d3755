"""A configuration and its weights in one folder, each with a checksum of the other.

``config.json`` holds the body, ``format``, the sha256 of ``model.safetensors`` (``weights``) and one of all of this
(``sha256``). The header of ``model.safetensors`` holds the sha256 of the body. So if any of the checksums is removed
or the files do not belong together, it is noticed. Folders from before format 2 have none of it, and are read as they
are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nextscale.errors import CheckpointError
from nextscale.storage.files import (
    digest,
    json_digest,
    load_tensors,
    read_json,
    save_tensors_atomic,
    tensor_metadata,
    write_json_atomic,
)

FORMAT = 2
METADATA = "nextscale"
"""The key in the header of ``model.safetensors``. There is one only, because the order of several would vary."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_sealed(folder: Path, tensors: Mapping[str, Tensor], body: Mapping[str, Any]) -> None:
    """Write both files. The weights come last, because their presence means that the folder is complete."""
    folder.mkdir(exist_ok=True)

    def write_config(weights: Path) -> None:
        (folder / WEIGHTS).unlink(missing_ok=True)  # those of an earlier configuration
        stored = {"format": FORMAT, **body, "weights": digest(weights)}
        write_json_atomic(folder / CONFIG, {**stored, "sha256": json_digest(stored)})

    told = json.dumps({"format": FORMAT, "config": json_digest(body)})
    save_tensors_atomic(folder / WEIGHTS, tensors, {METADATA: told}, written=write_config)


def read_sealed(folder: Path) -> dict[str, Any]:
    """The body of a folder's ``config.json``.

    Raises:
        CheckpointError: it is missing, damaged, edited, or of a later format.
    """
    body = _read(folder)
    return {key: value for key, value in body.items() if key not in ("format", "weights")}


def sealed_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's ``model.safetensors``; raises as ``read_sealed``."""
    stored, path = _read(folder), folder / WEIGHTS
    tensors = load_tensors(path)
    if "format" in stored and digest(path) != stored["weights"]:
        raise _damaged(path, f"its checksum differs from the one in {folder / CONFIG}")
    return tensors


def is_sealed(folder: Path) -> bool:
    """Whether a folder has checksums; raises as ``read_sealed``."""
    return "format" in _read(folder)


def weights_digest(folder: Path) -> str:
    """sha256 of a folder's weights; raises as ``read_sealed``."""
    stored = _read(folder)
    return stored["weights"] if "format" in stored else digest(folder / WEIGHTS)


def _read(folder: Path) -> dict[str, Any]:
    """``config.json`` without its own checksum, which is right."""
    path = folder / CONFIG
    stored = read_json(path)
    if not isinstance(stored, dict):
        raise _damaged(path, "it does not hold settings")
    if "format" not in stored:
        if METADATA in tensor_metadata(folder / WEIGHTS):
            raise _damaged(path, f"it has no checksum, but {folder / WEIGHTS} was saved with one")
        return stored
    if stored["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has the format {stored['format']!r}, but this version reads {FORMAT}: it was written by a later "
            "version, or is damaged"
        )
    expected = stored.pop("sha256", None)
    if expected != json_digest(stored) or not isinstance(stored.get("weights"), str):
        raise _damaged(path, "it does not match its checksum")
    return stored


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged or was edited ({what}): restore {CONFIG} and {WEIGHTS} from a copy, or remove "
        f"{path.parent} and make it again with `nextscale train --resume auto`, or with the import that made it"
    )
