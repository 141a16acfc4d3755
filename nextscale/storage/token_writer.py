"""Writing a token cache (``storage.tokens``): whole shards, by one process or several, continued after a kill.

Until it is complete, a cache lies in ``.NAME.partial``. Its folder ``done`` holds a record for each shard that is whole
on the disk, with the sizes and checksums of its files. The manifest is made of these records alone, so it does not
matter which process wrote which shard, nor how often writing was begun.

A cache behind a URL is begun in the same way in a local folder, from which each shard moves to the storage once it is
whole. Nothing can be renamed there, so ``manifest.json`` is removed first and written last: without it, there is no
cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from nextscale import distributed
from nextscale.errors import CheckpointError
from nextscale.remote.folder import RemoteFolder
from nextscale.storage.files import (
    digest,
    fsync,
    json_digest,
    partial_name,
    read_json,
    remove,
    replace_folder,
    restore_folder,
    write_json_atomic,
    writing,
)
from nextscale.storage.places import LocalPlace, Place, RemotePlace
from nextscale.storage.token_format import FORMAT, ArraySpec, StoredFile, is_token_store
from nextscale.tokens.pyramid import Schedule, TokenPyramid

_DONE = "done"


class TokenStoreWriter:
    """Writes a store; made by ``TokenStore.create`` and used as a context manager, by all processes together.

    The store appears under its own name only if the block succeeds in every process and all rows were appended. Rows
    are appended in order; ``begin`` goes to another shard.

    Attributes:
        unfinished: numbers of the shards that this and other processes have yet to write.
    """

    def __init__(
        self,
        path: Path,
        attributes: dict[str, Any],
        arrays: dict[str, ArraySpec],
        shard_rows: int,
        resume: bool = False,
        url: str | None = None,
    ):
        self.path, self.partial, self.resume = path, partial_name(path), resume
        self.remote = None if url is None else RemoteFolder(url)
        self.num_rows, self.shard_rows = attributes["num_rows"], shard_rows
        self.num_shards = -(-self.num_rows // shard_rows)
        self.schedule = Schedule.of(attributes["schedule"])
        self.vocabulary, self.conditions = attributes["vocabulary"], attributes["conditions"]
        self._attributes, self._specs = attributes, arrays
        self._shard = self._buffered = 0
        self._arrays: dict[str, zarr.Array] = {}
        self._buffers: dict[str, np.ndarray] = {}
        self.unfinished: list[int] = []

    def __enter__(self) -> TokenStoreWriter:
        distributed.on_main(self._prepare)
        with writing(self.path):
            group = zarr.open_group(LocalStore(self.partial), mode="r+")
            for name, (shape, dtype) in self._specs.items():
                array = group[name]
                assert isinstance(array, zarr.Array)
                self._arrays[name] = array
                self._buffers[name] = np.empty((self.shard_rows, *shape), dtype)
        # The first process looks, because others may see a shared file system with a delay.
        left = [distributed.is_main() and self._record(shard) is None for shard in range(self.num_shards)]
        on = distributed.communication_device()
        self.unfinished = distributed.total(torch.tensor(left, dtype=torch.int64, device=on)).nonzero()[:, 0].tolist()
        return self

    def _prepare(self) -> None:
        """Create the partial store, or clean up one that was left behind by a writer of the same rows."""
        place = self._look()
        if place.exists() and not is_token_store(place):
            raise CheckpointError(f"{place} exists and is not a token cache: name another path, or move it away")
        with writing(self.path):
            restore_folder(self.path)
            if self.resume and self._is_same():
                if self.remote:
                    self.remote.remove("manifest.json")
                self._remove_unfinished()
                return
            if self.remote:
                self.remote.remove()
            remove(self.partial)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._create_arrays()
            except BaseException:
                remove(self.partial)
                raise

    def _is_same(self) -> bool:
        """Whether the partial store is one of the same rows, with all its arrays."""
        try:
            # Written last, once all arrays are there.
            return json_digest(read_json(self.partial / _DONE / "attributes.json")) == json_digest(self._attributes)
        except CheckpointError:
            return False

    def _remove_unfinished(self) -> None:
        """Remove files that no record vouches for: of shards that were being written when a process was killed."""
        records = [record for record in map(self._record, range(self.num_shards)) if record is not None]
        known = {name for record in records for name in record}
        for name in self._specs:
            for file in (self.partial / name / "c").rglob("*"):
                if file.is_file() and file.relative_to(self.partial).as_posix() not in known:
                    file.unlink()
        for file in (self.partial / _DONE).glob(".*"):
            remove(file)

    def _create_arrays(self) -> None:
        group = zarr.open_group(LocalStore(self.partial), mode="w", attributes=self._attributes)
        for name, (shape, dtype) in self._specs.items():
            group.create_array(
                name,
                shape=(self.num_rows, *shape),
                dtype=dtype,
                shards=(self.shard_rows, *shape),
                chunks=(self.shard_rows, *shape),  # shards are read whole, which is fastest in one piece
                compressors=[ZstdCodec(level=1), Crc32cCodec()],
                fill_value=0,
            )
        if self.remote:  # so that what is there is known to be a cache, even if writing ends here
            for file in self.partial.rglob("zarr.json"):
                self.remote.put(file, file.relative_to(self.partial).as_posix())
        write_json_atomic(self.partial / _DONE / "attributes.json", self._attributes)

    def _look(self) -> Place:
        """What is there now."""
        self._place = LocalPlace(self.path) if self.remote is None else RemotePlace(self.remote.url)
        return self._place

    def rows_of(self, shard: int) -> range:
        """The numbers of the rows in a shard; the last one may hold fewer than the others."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.num_rows))

    def begin(self, shard: int) -> None:
        """The rows appended next are those of ``shard``, from its first on.

        Raises:
            ValueError: another shard is begun and not complete, or there is no such shard.
        """
        if self._buffered or not 0 <= shard < self.num_shards:
            raise ValueError(
                f"shard {shard} of {self.num_shards} cannot be begun after {self._buffered} rows of another"
            )
        self._shard = shard

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
                room = min(count - taken, len(self.rows_of(self._shard)) - self._buffered)
                for name, values in rows.items():
                    self._buffers[name][self._buffered : self._buffered + room] = values[taken : taken + room]
                taken, self._buffered = taken + room, self._buffered + room
                if self._buffered == len(self.rows_of(self._shard)):
                    self._flush()

    def _checked(self, pyramid: TokenPyramid, conditions: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        if pyramid.schedule != self.schedule:
            raise ValueError(f"this store holds the schedule {self.schedule}, not {pyramid.schedule}")
        if set(conditions) != set(self.conditions):
            raise ValueError(f"this store holds the conditions {self.conditions}, not {sorted(conditions)}")
        if self._shard * self.shard_rows + self._buffered + len(pyramid) > self.num_rows:
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
        """Write the buffered rows, which are a whole shard, and then its record."""
        rows = self.rows_of(self._shard)
        record = {}
        for name, array in self._arrays.items():
            array[rows.start : rows.stop] = self._buffers[name][: len(rows)]
            file = self._file(name)
            if file.exists():  # a shard of zeros has no file
                fsync(file)
                fsync(file.parent)
                stored = file.relative_to(self.partial).as_posix()
                record[stored] = _entry(file)
                if self.remote:
                    self.remote.put(file, stored)
                    file.unlink()
        write_json_atomic(self._record_path(self._shard), record)
        self._shard, self._buffered = self._shard + 1, 0

    def _file(self, name: str) -> Path:
        """The file that holds the current shard of an array."""
        places = [str(self._shard), *["0"] * len(self._specs[name][0])]
        return self.partial.joinpath(name, "c", *places)

    def _record_path(self, shard: int) -> Path:
        return self.partial / _DONE / f"{shard}.json"

    def _record(self, shard: int) -> dict[str, Any] | None:
        """What is recorded of a shard that is whole on the disk; None if it has yet to be written."""
        if not self._record_path(shard).exists():
            return None
        try:
            record = read_json(self._record_path(shard))
            files = {name: StoredFile.model_validate(entry) for name, entry in record.items()}
            place = LocalPlace(self.partial) if self.remote is None else self._place
            sound = all(place.size(name) == entry.bytes for name, entry in files.items())
        except (CheckpointError, ValueError, AttributeError, OSError):
            return None
        return record if sound else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            distributed.on_main(self._finish)
        elif distributed.is_main() and not (self.resume and any((self.partial / _DONE).glob("[0-9]*"))):
            remove(self.partial)

    def _finish(self) -> None:
        try:
            with writing(self.path):
                self._replace()
        except BaseException:
            if self.remote is None or not self.resume:  # a storage that failed may answer the next time
                remove(self.partial)
            raise
        remove(self.partial)
        if self.remote:
            with contextlib.suppress(OSError):  # not empty
                self.path.parent.rmdir()

    def _replace(self) -> None:
        """Write the manifest, and move the store to its place."""
        place = self._look()
        records = [self._record(shard) for shard in range(self.num_shards)]
        missing = sum(len(self.rows_of(shard)) for shard, record in enumerate(records) if record is None)
        if missing:
            found = self.num_rows - missing + self._buffered
            raise CheckpointError(f"{place} was not saved: {found} of {self.num_rows} rows were appended")
        manifest = {name: entry for record in records for name, entry in (record or {}).items()}
        for file in self.partial.rglob("zarr.json"):
            fsync(file)
            stored = file.relative_to(self.partial).as_posix()
            manifest[stored] = _entry(file)
            if self.remote:  # again, because an interrupted cache may go on at another URL
                self.remote.put(file, stored)
        body = {"format": FORMAT, "files": dict(sorted(manifest.items()))}
        write_json_atomic(self.partial / "manifest.json", {**body, "sha256": json_digest(body)})
        if self.remote is None:
            remove(self.partial / _DONE)
            replace_folder(self.partial, self.path)
        else:
            self.remote.put(self.partial / "manifest.json", "manifest.json")


def _entry(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": digest(file)}
