"""What the files of a token cache say, and whether they are whole (``storage.tokens``)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt

from nextscale.errors import CheckpointError
from nextscale.storage.files import MAX_JSON_BYTES, json_digest, one_line, parse_json, stored_settings
from nextscale.storage.places import Place

FORMAT = "nextscale-tokens-2"
_WITHOUT_CHECKSUMS = "nextscale-tokens-1"
"""The format of earlier versions: no checksums of shards, which then only know whether they are intact, nor of the
manifest."""
_SHARD_BYTES = 2 << 20
_MIN_SHARD_ROWS = 1024
_ROWS_MULTIPLE = 4
MAX_SHARD_BYTES = 4 << 30
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


def verified(place: Place) -> tuple[StoredAttributes, dict[str, StoredFile]]:
    """The attributes of a store and its manifest, once every file is found complete; shards are compared with their
    checksums when they are read."""
    if not place.exists():
        raise CheckpointError(f"there is no token cache at {place}: run `nextscale tokenize`")
    if not is_token_store(place):
        raise CheckpointError(f"{place} is not a token cache: name a folder that `nextscale tokenize` wrote")
    manifest = _read_manifest(place)
    for name, entry in manifest.files.items():
        size = place.size(name)
        if size is None:
            raise damaged(place, f"{name} is missing")
        if size != entry.bytes:
            raise damaged(place, f"{name} has {size} of {entry.bytes} bytes")
        if size > (MAX_JSON_BYTES if name.endswith(".json") else MAX_SHARD_BYTES):
            raise damaged(place, f"{name} has {size:,} bytes, which are too many")
    described = [name for name, entry in manifest.files.items() if entry.sha256 and name.endswith(".json")]
    for name, content in zip(described, contents(place, described), strict=True):
        if hashlib.sha256(content).hexdigest() != manifest.files[name].sha256:
            raise damaged(place, f"{name} does not match its checksum")
    try:
        group = _read_json(place, "zarr.json")
        attributes = group.get("attributes") if isinstance(group, dict) else None
        stored = stored_settings(StoredAttributes, attributes, place)
    except CheckpointError as error:
        raise damaged(place, str(error)) from None
    if stored.format != manifest.format:
        raise damaged(place, "manifest.json and zarr.json are of different formats")
    return stored, manifest.files


def _read_manifest(place: Place) -> Manifest:
    try:
        body = _read_json(place, "manifest.json")
        known = body.get("format") if isinstance(body, dict) else None
        if isinstance(known, str) and known not in (FORMAT, _WITHOUT_CHECKSUMS):
            raise CheckpointError(f"it has the format {known!r}, but this version reads {FORMAT!r}")
        manifest = stored_settings(Manifest, body, f"{place}/manifest.json")
    except CheckpointError as error:
        raise damaged(place, str(error)) from None
    if known == FORMAT:
        expected = body.pop("sha256", None)
        if expected != json_digest(body) or any(entry.sha256 is None for entry in manifest.files.values()):
            raise damaged(place, "manifest.json does not match its checksum")
    if "zarr.json" not in manifest.files:
        raise damaged(place, "manifest.json does not list zarr.json")
    return manifest


def _read_json(place: Place, name: str) -> Any:
    size = place.size(name)
    if size is None:
        raise CheckpointError(f"{name} is missing")
    if size > MAX_JSON_BYTES:
        raise CheckpointError(f"{name} is damaged: {size:,} bytes are too many")
    try:
        return parse_json(contents(place, [name])[0])
    except ValueError as error:
        raise CheckpointError(f"{name} is damaged: {one_line(error)}") from None


def contents(place: Place, names: Sequence[str]) -> list[bytes]:
    """The contents of files of a store; raises CheckpointError or RemoteError."""
    try:
        return place.read(names)
    except OSError as error:
        raise damaged(place, f"{error.filename} cannot be read: {error.strerror}") from None


def damaged(where: object, what: str) -> CheckpointError:
    return CheckpointError(f"the token cache {where} is damaged ({what}): run `nextscale tokenize` or delete it")


def is_token_store(place: Place) -> bool:
    """Whether a token cache is there, intact or not: nothing else is ever replaced."""
    names = [name for name in ("manifest.json", "zarr.json") if (place.size(name) or 0) in range(1, MAX_JSON_BYTES)]
    try:
        return any(FORMAT.rstrip("2").encode() in content for content in place.read(names))
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from None


def numpy_dtype(dtype: Any) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype if isinstance(dtype, torch.dtype) else np.dtype(dtype)


def default_shard_rows(row_bytes: int, num_rows: int) -> int:
    """About 2 MiB of tokens and at least 1024 rows, but no more than ``num_rows``; rounded up to a multiple of 4."""
    rows = min(max(_SHARD_BYTES // row_bytes, _MIN_SHARD_ROWS), num_rows)
    return -(-rows // _ROWS_MULTIPLE) * _ROWS_MULTIPLE
