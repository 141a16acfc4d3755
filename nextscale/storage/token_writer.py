"""Writing a token cache (``storage.tokens``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from torch import Tensor
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from nextscale.errors import CheckpointError
from nextscale.storage.files import (
    digest,
    fsync,
    json_digest,
    partial_name,
    remove,
    replace_folder,
    restore_folder,
    write_json_atomic,
    writing,
)
from nextscale.storage.token_format import CHUNKS_PER_SHARD, FORMAT, ArraySpec, is_token_store
from nextscale.tokens.pyramid import Schedule, TokenPyramid


class TokenStoreWriter:
    """Writes a store; made by ``TokenStore.create`` and used as a context manager.

    The store appears under its own name only if the block succeeds and all rows were appended.
    """

    def __init__(self, path: Path, attributes: dict[str, Any], arrays: dict[str, ArraySpec], shard_rows: int):
        self.path, self.partial = path, partial_name(path)
        self.num_rows, self.shard_rows = attributes["num_rows"], shard_rows
        self.schedule = Schedule.of(attributes["schedule"])
        self.vocabulary, self.conditions = attributes["vocabulary"], attributes["conditions"]
        self._attributes, self._specs = attributes, arrays
        self._written = self._buffered = 0
        self._arrays: dict[str, zarr.Array] = {}
        self._buffers: dict[str, np.ndarray] = {}

    def __enter__(self) -> TokenStoreWriter:
        if self.path.exists() and not is_token_store(self.path):
            raise CheckpointError(f"{self.path} exists and is not a token cache: name another path, or move it away")
        with writing(self.path):
            restore_folder(self.path)
            remove(self.partial)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._create_arrays()
            except BaseException:
                remove(self.partial)
                raise
        return self

    def _create_arrays(self) -> None:
        group = zarr.open_group(LocalStore(self.partial), mode="w", attributes=self._attributes)
        chunks = CHUNKS_PER_SHARD if self.shard_rows % CHUNKS_PER_SHARD == 0 else 1
        for name, (shape, dtype) in self._specs.items():
            self._arrays[name] = group.create_array(
                name,
                shape=(self.num_rows, *shape),
                dtype=dtype,
                shards=(self.shard_rows, *shape),
                chunks=(self.shard_rows // chunks, *shape),
                compressors=[ZstdCodec(level=1), Crc32cCodec()],
                fill_value=0,
            )
            self._buffers[name] = np.empty((self.shard_rows, *shape), dtype)

    def append(self, pyramid: TokenPyramid, conditions: Mapping[str, Tensor] | None = None) -> None:
        """Add B rows: their pyramid, and B values of every condition.

        Raises:
            ValueError: another schedule or other conditions than the store's, a token outside the vocabulary, or more
                rows than the store was created for.
            TrainingError: the disk is full.
        """
        rows = self._checked(pyramid, conditions or {})
        count, taken = len(pyramid), 0
        with writing(self.path):
            while taken < count:
                room = min(count - taken, self.shard_rows - self._buffered)
                for name, values in rows.items():
                    self._buffers[name][self._buffered : self._buffered + room] = values[taken : taken + room]
                taken, self._buffered = taken + room, self._buffered + room
                if self._buffered == self.shard_rows:
                    self._flush()

    def _checked(self, pyramid: TokenPyramid, conditions: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        if pyramid.schedule != self.schedule:
            raise ValueError(f"this store holds the schedule {self.schedule}, not {pyramid.schedule}")
        if set(conditions) != set(self.conditions):
            raise ValueError(f"this store holds the conditions {self.conditions}, not {sorted(conditions)}")
        if self._written + self._buffered + len(pyramid) > self.num_rows:
            raise ValueError(f"this store was created for {self.num_rows} rows; more were appended")
        if (pyramid.mask is not None) != ("mask" in self._specs):
            raise ValueError("a mask needs a store created with ragged=True, and such a store needs a mask")
        tokens = pyramid.tokens.detach().cpu().numpy()
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocabulary:
            raise ValueError(f"tokens {tokens.min()} to {tokens.max()} are outside the vocabulary of {self.vocabulary}")
        rows = {"tokens": tokens}
        if pyramid.mask is not None:
            rows["mask"] = pyramid.mask.cpu().numpy()
        rows |= {f"conditions/{name}": value.detach().cpu().numpy() for name, value in conditions.items()}
        for name, values in rows.items():
            shape, dtype = self._specs[name]
            expected = (len(pyramid), *shape)
            if values.shape != expected:
                raise ValueError(f"{name} has the shape {values.shape}; this store takes {expected}")
            if name != "tokens" and values.dtype != dtype:
                raise ValueError(f"{name} is {values.dtype}; this store takes {dtype}")
        return rows

    def _flush(self) -> None:
        """Write the buffered rows: a whole shard, or the store's last one."""
        for name, array in self._arrays.items():
            array[self._written : self._written + self._buffered] = self._buffers[name][: self._buffered]
        self._written, self._buffered = self._written + self._buffered, 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with writing(self.path):
                    self._finish()
        finally:
            remove(self.partial)

    def _finish(self) -> None:
        if self._buffered:
            self._flush()
        if self._written != self.num_rows:
            raise CheckpointError(f"{self.path} was not saved: {self._written} of {self.num_rows} rows were appended")
        files = sorted(file for file in self.partial.rglob("*") if file.is_file())
        manifest = {}
        for file in files:
            fsync(file)
            name = file.relative_to(self.partial).as_posix()
            manifest[name] = {"bytes": file.stat().st_size, "sha256": digest(file)}
        body = {"format": FORMAT, "files": manifest}
        write_json_atomic(self.partial / "manifest.json", {**body, "sha256": json_digest(body)})
        replace_folder(self.partial, self.path)
