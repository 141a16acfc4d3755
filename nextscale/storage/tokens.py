"""The token cache: a tokenizer's token pyramids, written once and read by whole shards (zarr 3, sharded).

A store is a folder: the arrays ``tokens`` (rows L *token_shape), ``mask`` (rows L, only where samples are ragged)
and ``conditions/NAME``, the attributes, and ``manifest.json``, which is written last and lists every file with its
checksum. Shards are compared with theirs when they are first read.

Reading a random single row costs hundreds of microseconds, a row of a decoded shard only a few, so read in the order
of ``StreamOrder``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

import numpy as np
import torch
import zarr
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from nextscale.errors import CheckpointError
from nextscale.storage.files import (
    digest,
    fsync,
    json_digest,
    one_line,
    partial_name,
    read_json,
    remove,
    replace_folder,
    restore_folder,
    stored_settings,
    write_json_atomic,
    writing,
)
from nextscale.tokens.pyramid import Schedule, TokenPyramid

FORMAT = "nextscale-tokens-2"
_WITHOUT_CHECKSUMS = "nextscale-tokens-1"
"""The format of earlier versions: no checksums of shards, which then only know whether they are intact, nor of the
manifest."""
_SHARD_BYTES = 2 << 20
_MIN_SHARD_ROWS = 1024
_CHUNKS_PER_SHARD = 4
_KEEP_WHOLE_BYTES = 512 << 20
_MAX_SHARD_BYTES = 4 << 30
"""No shard of more is read: a shard is the unit of reading, and should be about ``_SHARD_BYTES``."""
# Shape of a row, and its dtype.
_ArraySpec = tuple[tuple[int, ...], np.dtype]


def hash_module(module: nn.Module, extra: Mapping[str, Any]) -> str:
    """16 hex digits over a module's weights and buffers and the JSON of ``extra`` (its configuration)."""
    hasher = hashlib.sha256(json.dumps(dict(extra), sort_keys=True, default=str).encode())
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):
            hasher.update(f"\n{name}={value!r}\n".encode())
            continue
        hasher.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        hasher.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return hasher.hexdigest()[:16]


class TokenStoreWriter:
    """Writes a store; made by ``TokenStore.create`` and used as a context manager.

    The store appears under its own name only if the block succeeds and all rows were appended.
    """

    def __init__(self, path: Path, attributes: dict[str, Any], arrays: dict[str, _ArraySpec], shard_rows: int):
        self.path, self.partial = path, partial_name(path)
        self.num_rows, self.shard_rows = attributes["num_rows"], shard_rows
        self.schedule = Schedule.of(attributes["schedule"])
        self.vocabulary, self.conditions = attributes["vocabulary"], attributes["conditions"]
        self._attributes, self._specs = attributes, arrays
        self._written = self._buffered = 0
        self._arrays: dict[str, zarr.Array] = {}
        self._buffers: dict[str, np.ndarray] = {}

    def __enter__(self) -> TokenStoreWriter:
        if self.path.exists() and not _is_token_store(self.path):
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
        chunks = _CHUNKS_PER_SHARD if self.shard_rows % _CHUNKS_PER_SHARD == 0 else 1
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


class TokenStore:
    """A finished store, opened for reading.

    Attributes:
        schedule: the schedule of every row.
        num_rows: ``passes`` x ``num_samples``; rows are in the order in which they were appended, usually by pass.
        passes, num_samples: number of augmentation passes, and of samples per pass.
        token_vocabulary: V.
        token_shape: the shape of one token; () for codes.
        shard_rows: rows per shard, for ``StreamOrder``.
        tokenizer_hash: hash of the tokenizer that wrote the store.
        attributes: whatever the writer added.
    """

    def __init__(self, path: Path, stored: _Stored, files: dict[str, _File], shards_per_buffer: int) -> None:
        self.path = path
        self.schedule = Schedule.of(stored.schedule)
        self.num_rows = stored.num_rows
        self.passes = stored.passes
        self.num_samples = stored.num_samples
        self.token_vocabulary = stored.vocabulary
        self.token_shape = tuple(stored.token_shape)
        self.shard_rows = stored.shard_rows
        self.tokenizer_hash = stored.tokenizer_hash
        self.attributes = stored.attributes
        self._unread = {name: entry for name, entry in files.items() if entry.sha256 and not name.endswith(".json")}
        self._arrays = _open_arrays(path, stored)
        size = sum(math.prod(array.shape) * array.dtype.itemsize for array in self._arrays.values())
        # A small store is read once, as one block. Of a large one, the shards of a shuffle buffer are kept.
        whole = size <= _KEEP_WHOLE_BYTES
        self._block_rows = self.num_rows if whole else self.shard_rows
        self._block_of = lru_cache(1 if whole else shards_per_buffer + 1)(self._read_block)

    @staticmethod
    def create(
        path: Path | str,
        *,
        schedule: Schedule,
        vocabulary: int,
        num_rows: int,
        tokenizer_hash: str,
        token_shape: tuple[int, ...] = (),
        conditions: Mapping[str, tuple[tuple[int, ...], Any]] | None = None,
        ragged: bool = False,
        passes: int = 1,
        num_samples: int | None = None,
        attributes: Mapping[str, Any] | None = None,
        shard_rows: int | None = None,
    ) -> TokenStoreWriter:
        """A writer for ``num_rows`` rows. When its block succeeds, it replaces any token cache at ``path``.

        Args:
            vocabulary: V. Tokens lie in [0, V), and V decides the stored integer type (bits: V = 2).
            conditions: each condition's shape (without B) and numpy or torch dtype.
            ragged: store a mask.
            passes: number of times the data were tokenized, each time with different augmentation.
            num_samples: samples per pass; ``num_rows / passes`` by default.
            attributes: anything JSON-able to keep with the tokens.
            shard_rows: rows per shard; by default a shard takes about 2 MiB and at least 1024 rows.

        Raises:
            ValueError: a size is not positive.
            CheckpointError: (on entering) something other than a token cache is at ``path``.
        """
        if min(vocabulary, num_rows, passes, shard_rows or 1) < 1:
            raise ValueError("vocabulary, num_rows, passes and shard_rows must be positive")
        arrays: dict[str, _ArraySpec] = {}
        arrays["tokens"] = ((schedule.length, *token_shape), np.min_scalar_type(vocabulary - 1))
        if ragged:
            arrays["mask"] = ((schedule.length,), np.dtype(bool))
        for name, (shape, dtype) in (conditions or {}).items():
            arrays[f"conditions/{name}"] = (tuple(shape), _numpy_dtype(dtype))
        row_bytes = math.prod(arrays["tokens"][0]) * arrays["tokens"][1].itemsize
        shard_rows = shard_rows or _default_shard_rows(row_bytes, num_rows)
        stored = {
            "format": FORMAT,
            "tokenizer_hash": tokenizer_hash,
            "schedule": [list(scale.shape) for scale in schedule.scales],
            "vocabulary": vocabulary,
            "token_shape": list(token_shape),
            "num_rows": num_rows,
            "passes": passes,
            "num_samples": num_rows // passes if num_samples is None else num_samples,
            "shard_rows": shard_rows,
            "conditions": sorted(conditions or {}),
            "ragged": ragged,
            "attributes": dict(attributes or {}),
        }
        return TokenStoreWriter(Path(path), stored, arrays, shard_rows)

    @classmethod
    def open(cls, path: Path | str, tokenizer_hash: str | None = None, shards_per_buffer: int = 8) -> TokenStore:
        """Open a finished store.

        Args:
            tokenizer_hash: hash of this run's tokenizer (``hash_module``); None accepts any tokenizer.
            shards_per_buffer: that of the ``StreamOrder`` in which the store will be read.

        Raises:
            CheckpointError: it is missing, not a token cache, incomplete, damaged, or from another tokenizer.
        """
        path = Path(path)
        restore_folder(path)
        stored, files = _verified(path)
        written_by = stored.tokenizer_hash
        if tokenizer_hash is not None and tokenizer_hash != written_by:
            raise CheckpointError(
                f"{path} was written by tokenizer {written_by}, but this run's is {tokenizer_hash}: "
                "run `nextscale tokenize` or delete it"
            )
        return cls(path, stored, files, shards_per_buffer)

    def rows(self, indices: np.ndarray) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """The rows ``indices`` (B integers): tokens (B L *token_shape, int64), conditions, and the mask (B L).

        Raises:
            IndexError: a row outside [0, num_rows).
            CheckpointError: a shard is damaged.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < self.num_rows:
            raise IndexError(f"rows {indices.min()} to {indices.max()} are outside the store's {self.num_rows}")
        gathered = self._gather(indices)
        tokens = torch.from_numpy(gathered["tokens"].astype(np.int64))
        mask = torch.from_numpy(gathered["mask"]) if "mask" in gathered else None
        conditions = {
            name.removeprefix("conditions/"): torch.from_numpy(values)
            for name, values in gathered.items()
            if name.startswith("conditions/")
        }
        return tokens, conditions, mask

    def _gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        if self._block_rows == self.num_rows:
            return {name: values[indices] for name, values in self._block_of(0).items()}
        gathered = {
            name: np.empty((len(indices), *array.shape[1:]), array.dtype) for name, array in self._arrays.items()
        }
        blocks, local = np.divmod(indices, self._block_rows)
        distinct, first = np.unique(blocks, return_index=True)
        # Read blocks in the order of the batch. Where it crosses from one shuffle buffer to the next, the shards of
        # the old buffer are then used before those of the new one evict them.
        for block in distinct[np.argsort(first)].tolist():
            here = np.flatnonzero(blocks == block)
            for name, values in self._block_of(block).items():
                gathered[name][here] = values[local[here]]
        return gathered

    def _read_block(self, block: int) -> dict[str, np.ndarray]:
        span = slice(block * self._block_rows, min((block + 1) * self._block_rows, self.num_rows))
        read = {}
        for name, array in self._arrays.items():
            self._verify_shards(name, span)
            try:
                read[name] = np.asarray(array[span])
            except Exception as error:  # zarr, its codecs and the file system each raise their own errors
                raise _damaged(self.path, f"{name}, rows {span.start} to {span.stop - 1}: {one_line(error)}") from None
        tokens = read["tokens"]
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.token_vocabulary:
            raise _damaged(self.path, f"tokens outside the vocabulary of {self.token_vocabulary}")
        return read

    def _verify_shards(self, name: str, span: slice) -> None:
        """Compare the shards of an array that hold the rows ``span`` with the manifest, each once."""
        axes = len(self._arrays[name].shape)
        for shard in range(span.start // self.shard_rows, -(-span.stop // self.shard_rows)):
            file = f"{name}/c/{'/'.join([str(shard), *['0'] * (axes - 1)])}"
            entry = self._unread.get(file)  # a shard of zeros has no file
            if entry is not None and _digest_of(self.path, file) != entry.sha256:
                raise _damaged(self.path, f"{file} does not match its checksum")
            self._unread.pop(file, None)


class _File(BaseModel):
    bytes: NonNegativeInt
    sha256: str | None


class _Manifest(BaseModel):
    format: str
    files: dict[str, _File]


class _Stored(BaseModel):
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


def _verified(path: Path) -> tuple[_Stored, dict[str, _File]]:
    """The attributes of a store and its manifest, once every file is found complete; shards are compared with their
    checksums when they are read."""
    if not path.exists():
        raise CheckpointError(f"there is no token cache at {path}: run `nextscale tokenize`")
    if not _is_token_store(path):
        raise CheckpointError(f"{path} is not a token cache: name a folder that `nextscale tokenize` wrote")
    manifest = _read_manifest(path)
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise _damaged(path, f"{name} is missing")
        if file.stat().st_size != entry.bytes:
            raise _damaged(path, f"{name} has {file.stat().st_size} of {entry.bytes} bytes")
        if entry.sha256 is not None and file.suffix == ".json" and _digest_of(path, name) != entry.sha256:
            raise _damaged(path, f"{name} does not match its checksum")
    try:
        group = read_json(path / "zarr.json")
        stored = stored_settings(_Stored, group.get("attributes") if isinstance(group, dict) else None, path)
    except CheckpointError as error:
        raise _damaged(path, str(error)) from None
    if stored.format != manifest.format:
        raise _damaged(path, "manifest.json and zarr.json are of different formats")
    return stored, manifest.files


def _read_manifest(path: Path) -> _Manifest:
    file = path / "manifest.json"
    try:
        body = read_json(file)
        known = body.get("format") if isinstance(body, dict) else None
        if isinstance(known, str) and known not in (FORMAT, _WITHOUT_CHECKSUMS):
            raise CheckpointError(f"it has the format {known!r}, but this version reads {FORMAT!r}")
        manifest = stored_settings(_Manifest, body, file)
    except CheckpointError as error:
        raise _damaged(path, str(error)) from None
    if known == FORMAT:
        expected = body.pop("sha256", None)
        if expected != json_digest(body) or any(entry.sha256 is None for entry in manifest.files.values()):
            raise _damaged(path, "manifest.json does not match its checksum")
    if "zarr.json" not in manifest.files:
        raise _damaged(path, "manifest.json does not list zarr.json")
    return manifest


def _digest_of(path: Path, name: str) -> str:
    try:
        return digest(path / name)
    except OSError as error:
        raise _damaged(path, f"{name} cannot be read: {error.strerror}") from None


def _open_arrays(path: Path, stored: _Stored) -> dict[str, zarr.Array]:
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
        raise _damaged(path, f"its arrays cannot be opened: {one_line(error)}") from None
    opened = {}
    for (name, shape), array in zip(names.items(), arrays.values(), strict=True):
        if not isinstance(array, zarr.Array):
            raise _damaged(path, f"{name} is not an array")
        if array.shape[:1] != (stored.num_rows,) or shape not in (None, array.shape):
            raise _damaged(path, f"{name} has the shape {array.shape}, not that of {stored.num_rows} rows")
        if stored.shard_rows * math.prod(array.shape[1:]) * array.dtype.itemsize > _MAX_SHARD_BYTES:
            raise _damaged(path, f"a shard of {name} announces more than {_MAX_SHARD_BYTES >> 30} GiB")
        if array.shards is None or array.shards != (stored.shard_rows, *array.shape[1:]):
            raise _damaged(path, f"{name} has shards of {array.shards}")
        opened[name] = array
    return opened


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"the token cache {path} is damaged ({what}): run `nextscale tokenize` or delete it")


def _is_token_store(path: Path) -> bool:
    """Whether ``path`` is a token cache, intact or not: nothing else is ever replaced."""
    files = (path / "manifest.json", path / "zarr.json")
    try:
        return any(file.is_file() and FORMAT.rstrip("2").encode() in file.read_bytes() for file in files)
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from None


def _numpy_dtype(dtype: Any) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype if isinstance(dtype, torch.dtype) else np.dtype(dtype)


def _default_shard_rows(row_bytes: int, num_rows: int) -> int:
    """About 2 MiB of tokens and at least 1024 rows, but no more than ``num_rows``; rounded up to whole chunks."""
    rows = min(max(_SHARD_BYTES // row_bytes, _MIN_SHARD_ROWS), num_rows)
    return -(-rows // _CHUNKS_PER_SHARD) * _CHUNKS_PER_SHARD
