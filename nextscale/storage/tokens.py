"""The token cache: a tokenizer's token pyramids, written once and read by whole shards (zarr 3, sharded).

A store is a folder, here or behind a URL: the arrays ``tokens`` (rows L *token_shape), ``mask`` (rows L, only where
samples are ragged) and ``conditions/NAME``, the attributes, and ``manifest.json``, which is written last and lists
every file with its checksum. Shards are compared with theirs when they are first read.

Reading a random single row costs hundreds of microseconds, a row of a decoded shard only a few, so read in the order
of ``StreamOrder``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nextscale.errors import CheckpointError
from nextscale.storage.files import restore_folder
from nextscale.storage.places import LocalPlace, Place, place_of
from nextscale.storage.token_format import (
    FORMAT,
    ArraySpec,
    StoredAttributes,
    StoredFile,
    default_shard_rows,
    numpy_dtype,
    verified,
)
from nextscale.storage.token_shards import ShardReader
from nextscale.storage.token_writer import TokenStoreWriter
from nextscale.tokens.pyramid import Schedule

_KEEP_WHOLE_BYTES = 512 << 20


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

    def __init__(
        self, place: Place, stored: StoredAttributes, files: dict[str, StoredFile], shards_per_buffer: int
    ) -> None:
        self.path = place.path
        self.schedule = Schedule.of(stored.schedule)
        self.num_rows = stored.num_rows
        self.passes = stored.passes
        self.num_samples = stored.num_samples
        self.token_vocabulary = stored.vocabulary
        self.token_shape = tuple(stored.token_shape)
        self.shard_rows = stored.shard_rows
        self.tokenizer_hash = stored.tokenizer_hash
        self.attributes = stored.attributes
        self._shards = ShardReader(place, stored, files)
        arrays = self._shards.arrays
        size = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays.values())
        # Decoded shards lie one after another in slots, so that one index gathers a batch. All shards of a small store
        # are kept, those of a shuffle buffer of a large one.
        num_shards = -(-self.num_rows // self.shard_rows)
        self._num_slots = num_shards if size <= _KEEP_WHOLE_BYTES else min(num_shards, shards_per_buffer + 1)
        self._slot_rows = min(self.shard_rows, self.num_rows)
        rows = self._num_slots * self._slot_rows
        self._kept = {name: np.empty((rows, *array.shape[1:]), array.dtype) for name, array in arrays.items()}
        self._slot_of = np.full(num_shards, -1)
        self._free = list(range(self._num_slots))
        self._in_slots: dict[int, int] = {}
        """The slots of the shards that are decoded, in the order in which they were read."""

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
        resume: bool = False,
        url: str | None = None,
    ) -> TokenStoreWriter:
        """A writer for ``num_rows`` rows. When its block succeeds, it replaces any token cache at ``path``, or at
        ``url``.

        Args:
            url: where the store goes instead. Shards are then made beside ``path``, and stay there only until they are
                whole.
            vocabulary: V. Tokens lie in [0, V), and V decides the stored integer type (bits: V = 2).
            conditions: each condition's shape (without B) and numpy or torch dtype.
            ragged: store a mask.
            passes: number of times the data were tokenized, each time with different augmentation.
            num_samples: samples per pass; ``num_rows / passes`` by default.
            attributes: anything JSON-able to keep with the tokens.
            shard_rows: rows per shard; by default a shard takes about 2 MiB and at least 1024 rows.
            resume: keep the shards that an interrupted writer with the same arguments has completed, and keep this
                one's if it is interrupted. The arguments must decide every row.

        Raises:
            ValueError: a size is not positive.
            CheckpointError: (on entering) something other than a token cache is there.
            RemoteError: the URL cannot be reached or written.
        """
        if min(vocabulary, num_rows, passes, shard_rows or 1) < 1:
            raise ValueError("vocabulary, num_rows, passes and shard_rows must be positive")
        arrays: dict[str, ArraySpec] = {}
        arrays["tokens"] = ((schedule.length, *token_shape), np.min_scalar_type(vocabulary - 1))
        if ragged:
            arrays["mask"] = ((schedule.length,), np.dtype(bool))
        for name, (shape, dtype) in (conditions or {}).items():
            arrays[f"conditions/{name}"] = (tuple(shape), numpy_dtype(dtype))
        row_bytes = math.prod(arrays["tokens"][0]) * arrays["tokens"][1].itemsize
        shard_rows = shard_rows or default_shard_rows(row_bytes, num_rows)
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
        return TokenStoreWriter(Path(path), stored, arrays, shard_rows, resume, url)

    @classmethod
    def open(cls, path: Path | str, tokenizer_hash: str | None = None, shards_per_buffer: int = 8) -> TokenStore:
        """Open a finished store.

        Args:
            tokenizer_hash: hash of this run's tokenizer (``hash_module``); None accepts any tokenizer.
            shards_per_buffer: that of the ``StreamOrder`` in which the store will be read.

        Raises:
            CheckpointError: it is missing, not a token cache, incomplete, damaged, or from another tokenizer.
        """
        place = place_of(path)
        if isinstance(place, LocalPlace):
            restore_folder(place.path)
        stored, files = verified(place)
        written_by = stored.tokenizer_hash
        if tokenizer_hash is not None and tokenizer_hash != written_by:
            raise CheckpointError(
                f"{place} was written by tokenizer {written_by}, but this run's is {tokenizer_hash}: "
                "run `nextscale tokenize` or delete it"
            )
        return cls(place, stored, files, shards_per_buffer)

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
        shards, inside = np.divmod(indices, self.shard_rows)
        if (self._slot_of[shards] < 0).any():
            distinct, first = np.unique(shards, return_index=True)
            # Read shards in the order of the batch. Where it crosses from one shuffle buffer to the next, the shards of
            # the old buffer are then used before those of the new one take their place.
            groups = np.split(distinct[np.argsort(first)], np.arange(self._num_slots, len(distinct), self._num_slots))
        else:
            groups = [shards]
        if len(groups) == 1:
            self._keep(groups[0])
            rows = self._slot_of[shards] * self._slot_rows + inside
            return {name: values.take(rows, 0) for name, values in self._kept.items()}
        gathered = {
            name: np.empty((len(indices), *values.shape[1:]), values.dtype) for name, values in self._kept.items()
        }
        for group in groups:
            self._keep(group)
            here = np.flatnonzero(np.isin(shards, group))
            rows = self._slot_of[shards[here]] * self._slot_rows + inside[here]
            for name, values in self._kept.items():
                gathered[name][here] = values.take(rows, 0)
        return gathered

    def _keep(self, shards: np.ndarray) -> None:
        """Have these shards decoded, at most as many as there are slots; those that were read first make room."""
        missing = [shard for shard in shards.tolist() if self._slot_of[shard] < 0]
        if not missing:
            return
        wanted = set(shards.tolist())
        leaving = iter([shard for shard in self._in_slots if shard not in wanted])
        for shard in missing:
            if not self._free:
                left = next(leaving)
                self._free.append(self._in_slots.pop(left))
                self._slot_of[left] = -1
            first = self._free[-1] * self._slot_rows
            slot = {name: values[first : first + self._slot_rows] for name, values in self._kept.items()}
            self._shards.read(shard, slot)
            self._in_slots[shard] = self._slot_of[shard] = self._free.pop()
