"""Reading the shards of a token cache (``storage.tokens``): each is fetched whole, compared and decoded from memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, MutableMapping
from typing import cast

import numpy as np
import zarr
from numcodecs import Zstd
from numcodecs.checksum32 import CRC32C
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from nextscale.storage.files import one_line
from nextscale.storage.places import Place
from nextscale.storage.token_format import MAX_SHARD_BYTES, StoredAttributes, StoredFile, contents, damaged

_ZSTD, _CRC32C = Zstd(), CRC32C()
_INDEX_BYTES = 20
"""The index of a shard of one chunk: its offset, its size (8 bytes each) and a CRC32C of the two."""


class ShardReader:
    """The shards of a store, read one at a time.

    Attributes:
        arrays: by name, as zarr sees them.

    Raises:
        CheckpointError: the arrays are not those that the store's attributes announce, or a shard is damaged.
    """

    def __init__(self, place: Place, stored: StoredAttributes, files: Mapping[str, StoredFile]) -> None:
        self._place, self._stored, self._files = place, stored, files
        self._unread = {name: entry.sha256 for name, entry in files.items() if entry.sha256}
        # zarr's view of the store: the descriptions of the arrays and, while it is decoded, a shard. So zarr reads from
        # disks and storages alike, and each file is read only once.
        self._held: dict[str, Buffer] = {}
        self.arrays = _open_arrays(place, stored, files, self._held)
        self._plain = {name for name, array in self.arrays.items() if _is_plain(array)}

    def read(self, shard: int, into: Mapping[str, np.ndarray]) -> None:
        """Decode a shard of every array into the first rows of ``into``; the last shard may hold fewer rows."""
        rows = self._stored.shard_rows
        first, last = shard * rows, min((shard + 1) * rows, self._stored.num_rows)
        named = {name: f"{name}/c/{shard}{'/0' * (len(array.shape) - 1)}" for name, array in self.arrays.items()}
        files = [file for file in named.values() if file in self._files]  # a shard of zeros has no file
        found = dict(zip(files, contents(self._place, files), strict=True))
        for file, content in found.items():
            expected = self._unread.get(file)
            if expected is not None and hashlib.sha256(content).hexdigest() != expected:
                raise damaged(self._place, f"{file} does not match its checksum")
            self._unread.pop(file, None)
        for name, file in named.items():
            try:
                decoded = self._decoded(name, file, found.get(file), first, last)
            except Exception as error:  # zarr and the codecs each raise their own errors
                what = f"{name}, rows {first} to {last - 1}: {one_line(error)}"
                raise damaged(self._place, what) from None
            vocabulary = self._stored.vocabulary
            if name == "tokens" and decoded.size and not 0 <= decoded.min() <= decoded.max() < vocabulary:
                raise damaged(self._place, f"tokens outside the vocabulary of {vocabulary}")
            into[name][: last - first] = decoded

    def _decoded(self, name: str, file: str, content: bytes | None, first: int, last: int) -> np.ndarray:
        array = self.arrays[name]
        if content is not None and name in self._plain:
            decoded = _decode_plain(content, array)
            if decoded is not None:
                return decoded[: last - first]
        if content is not None:
            self._held[file] = _as_buffer(content)
        try:
            return np.asarray(array[first:last])
        finally:
            self._held.pop(file, None)


def _is_plain(array: zarr.Array) -> bool:
    """Whether the shards of an array are what ``TokenStoreWriter`` writes: one chunk each, zstd and then CRC32C."""
    (sharding, *others) = getattr(array.metadata, "codecs", ()) or (None,)
    if others or not isinstance(sharding, ShardingCodec) or sharding.chunk_shape != array.shards:
        return False
    usual = ShardingCodec(chunk_shape=sharding.chunk_shape)
    if (sharding.index_location, sharding.index_codecs) != (usual.index_location, usual.index_codecs):
        return False
    kinds, numbers = [type(codec) for codec in sharding.codecs], sharding.codecs[0].to_dict().get("configuration")
    return kinds == [BytesCodec, ZstdCodec, Crc32cCodec] and numbers in (None, {"endian": "little"})


def _decode_plain(content: bytes, array: zarr.Array) -> np.ndarray | None:
    """A shard of such an array, decoded in one go; None if the chunk is not where the writer puts it.

    zarr does the same, but copies a shard twice more and passes it between threads, which takes longer than decoding.
    """
    assert array.shards is not None
    view = memoryview(content)
    size = len(view) - _INDEX_BYTES
    index = np.asarray(_CRC32C.decode(view[size:])).view("<u8") if size > 0 else ()
    if tuple(index) != (0, size):
        return None
    values = cast(bytes, _ZSTD.decode(_CRC32C.decode(view[:size])))
    return np.frombuffer(values, array.dtype.newbyteorder("<")).reshape(array.shards)


def _as_buffer(content: bytes) -> Buffer:
    """As zarr takes it."""
    return default_buffer_prototype().buffer.from_bytes(content)


def _open_arrays(
    place: Place, stored: StoredAttributes, files: Mapping[str, StoredFile], held: MutableMapping[str, Buffer]
) -> dict[str, zarr.Array]:
    """The arrays of a store by name. They have the shapes that its attributes announce, and shards that fit memory.

    Args:
        files: those in the manifest.
        held: where zarr finds their contents.
    """
    described = [name for name in files if name.endswith(".json")]
    held.update(zip(described, map(_as_buffer, contents(place, described)), strict=True))
    length = sum(math.prod(shape) for shape in stored.schedule)
    names: dict[str, tuple[int, ...] | None] = {"tokens": (stored.num_rows, length, *stored.token_shape)}
    if stored.ragged:
        names["mask"] = (stored.num_rows, length)
    names |= {f"conditions/{name}": None for name in stored.conditions}
    try:
        group = zarr.open_group(MemoryStore(held, read_only=True), mode="r")
        arrays = {name: group[name] for name in names}
    except Exception as error:  # zarr raises errors of many kinds
        raise damaged(place, f"its arrays cannot be opened: {one_line(error)}") from None
    opened = {}
    for (name, shape), array in zip(names.items(), arrays.values(), strict=True):
        if not isinstance(array, zarr.Array):
            raise damaged(place, f"{name} is not an array")
        if array.shape[:1] != (stored.num_rows,) or shape not in (None, array.shape):
            raise damaged(place, f"{name} has the shape {array.shape}, not that of {stored.num_rows} rows")
        if stored.shard_rows * math.prod(array.shape[1:]) * array.dtype.itemsize > MAX_SHARD_BYTES:
            raise damaged(place, f"a shard of {name} announces more than {MAX_SHARD_BYTES >> 30} GiB")
        if array.shards is None or array.shards != (stored.shard_rows, *array.shape[1:]):
            raise damaged(place, f"{name} has shards of {array.shards}")
        opened[name] = array
    return opened
