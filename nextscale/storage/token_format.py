"""What the files of a token cache say, and whether they are whole (``storage.tokens``)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import zarr
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt
from zarr.storage import LocalStore

from nextscale.errors import CheckpointError
from nextscale.storage.files import digest, json_digest, one_line, read_json, stored_settings

FORMAT = "nextscale-tokens-2"
_WITHOUT_CHECKSUMS = "nextscale-tokens-1"
"""The format of earlier versions: no checksums of shards, which then only know whether they are intact, nor of the
manifest."""
_SHARD_BYTES = 2 << 20
_MIN_SHARD_ROWS = 1024
CHUNKS_PER_SHARD = 4
_MAX_SHARD_BYTES = 4 << 30
"""No shard of more is read: a shard is the unit of reading, and should be about ``_SHARD_BYTES``."""
# Shape of a row, and its dtype.
ArraySpec = tuple[tuple[int, ...], np.dtype]


class StoredFile(BaseModel):
    bytes: NonNegativeInt
    sha256: str | None


class Manifest(BaseModel):
    format: str
    files: dict[str, StoredFile]


class StoredAttributes(BaseModel):
    """The attributes of a store."""

    format: Literal["nextscale-tokens-1", "nextscale-tokens-2"]
    tokenizer_hash: str
    schedule: Annotated[list[Annotated[list[PositiveInt], Field(min_length=1)]], Field(min_length=1)]
    vocabulary: PositiveInt
    token_shape: list[PositiveInt]
    num_rows: PositiveInt
    passes: PositiveInt
    num_samples: PositiveInt
    shard_rows: PositiveInt
    conditions: list[str]
    ragged: bool
    attributes: dict[str, Any]


def verified(path: Path) -> tuple[StoredAttributes, dict[str, StoredFile]]:
    """The attributes of a store and its manifest, once every file is found complete; shards are compared with their
    checksums when they are read."""
    if not path.exists():
        raise CheckpointError(f"there is no token cache at {path}: run `nextscale tokenize`")
    if not is_token_store(path):
        raise CheckpointError(f"{path} is not a token cache: name a folder that `nextscale tokenize` wrote")
    manifest = _read_manifest(path)
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise damaged(path, f"{name} is missing")
        if file.stat().st_size != entry.bytes:
            raise damaged(path, f"{name} has {file.stat().st_size} of {entry.bytes} bytes")
        if entry.sha256 is not None and file.suffix == ".json" and digest_of(path, name) != entry.sha256:
            raise damaged(path, f"{name} does not match its checksum")
    try:
        group = read_json(path / "zarr.json")
        stored = stored_settings(StoredAttributes, group.get("attributes") if isinstance(group, dict) else None, path)
    except CheckpointError as error:
        raise damaged(path, str(error)) from None
    if stored.format != manifest.format:
        raise damaged(path, "manifest.json and zarr.json are of different formats")
    return stored, manifest.files


def _read_manifest(path: Path) -> Manifest:
    file = path / "manifest.json"
    try:
        body = read_json(file)
        known = body.get("format") if isinstance(body, dict) else None
        if isinstance(known, str) and known not in (FORMAT, _WITHOUT_CHECKSUMS):
            raise CheckpointError(f"it has the format {known!r}, but this version reads {FORMAT!r}")
        manifest = stored_settings(Manifest, body, file)
    except CheckpointError as error:
        raise damaged(path, str(error)) from None
    if known == FORMAT:
        expected = body.pop("sha256", None)
        if expected != json_digest(body) or any(entry.sha256 is None for entry in manifest.files.values()):
            raise damaged(path, "manifest.json does not match its checksum")
    if "zarr.json" not in manifest.files:
        raise damaged(path, "manifest.json does not list zarr.json")
    return manifest


def digest_of(path: Path, name: str) -> str:
    try:
        return digest(path / name)
    except OSError as error:
        raise damaged(path, f"{name} cannot be read: {error.strerror}") from None


def open_arrays(path: Path, stored: StoredAttributes) -> dict[str, zarr.Array]:
    """The arrays of a store by name. They have the shapes that its attributes announce, and shards that fit memory."""
    length = sum(math.prod(shape) for shape in stored.schedule)
    names: dict[str, tuple[int, ...] | None] = {"tokens": (stored.num_rows, length, *stored.token_shape)}
    if stored.ragged:
        names["mask"] = (stored.num_rows, length)
    names |= {f"conditions/{name}": None for name in stored.conditions}
    try:
        group = zarr.open_group(LocalStore(path, read_only=True), mode="r")
        arrays = {name: group[name] for name in names}
    except Exception as error:  # zarr raises errors of many kinds
        raise damaged(path, f"its arrays cannot be opened: {one_line(error)}") from None
    opened = {}
    for (name, shape), array in zip(names.items(), arrays.values(), strict=True):
        if not isinstance(array, zarr.Array):
            raise damaged(path, f"{name} is not an array")
        if array.shape[:1] != (stored.num_rows,) or shape not in (None, array.shape):
            raise damaged(path, f"{name} has the shape {array.shape}, not that of {stored.num_rows} rows")
        if stored.shard_rows * math.prod(array.shape[1:]) * array.dtype.itemsize > _MAX_SHARD_BYTES:
            raise damaged(path, f"a shard of {name} announces more than {_MAX_SHARD_BYTES >> 30} GiB")
        if array.shards is None or array.shards != (stored.shard_rows, *array.shape[1:]):
            raise damaged(path, f"{name} has shards of {array.shards}")
        opened[name] = array
    return opened


def damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"the token cache {path} is damaged ({what}): run `nextscale tokenize` or delete it")


def is_token_store(path: Path) -> bool:
    """Whether ``path`` is a token cache, intact or not: nothing else is ever replaced."""
    files = (path / "manifest.json", path / "zarr.json")
    try:
        return any(file.is_file() and FORMAT.rstrip("2").encode() in file.read_bytes() for file in files)
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from None


def numpy_dtype(dtype: Any) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype if isinstance(dtype, torch.dtype) else np.dtype(dtype)


def default_shard_rows(row_bytes: int, num_rows: int) -> int:
    """About 2 MiB of tokens and at least 1024 rows, but no more than ``num_rows``; rounded up to whole chunks."""
    rows = min(max(_SHARD_BYTES // row_bytes, _MIN_SHARD_ROWS), num_rows)
    return -(-rows // CHUNKS_PER_SHARD) * CHUNKS_PER_SHARD
