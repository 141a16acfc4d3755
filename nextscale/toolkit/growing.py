"""An .npz file whose arrays grow, written in memory that does not grow with them."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from nextscale.storage.files import replacing

ROWS = 65_536
"""Texts that are converted at a time."""


class GrowingArrays:
    """Arrays of an .npz file in the making. Rows wait in unnamed temporary files, which vanish with the process."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self._folder, self._files = folder, files
        self._grown: dict[str, tuple[IO[bytes], np.dtype, tuple[int, ...]]] = {}
        self._whole: dict[str, np.ndarray] = {}
        self._texts: dict[str, str] | None = None

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add rows to arrays, which begin with their first rows.

        Texts may be of any length.

        Raises:
            ValueError: rows differ from earlier ones in shape or type.
        """
        for name, rows in arrays.items():
            rows = np.ascontiguousarray(rows)
            if name not in self._grown:
                spool = self._files.enter_context(tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115
                self._grown[name] = spool, rows.dtype, (0, *rows.shape[1:])
            spool, dtype, shape = self._grown[name]
            if rows.dtype.kind == dtype.kind == "U" and rows.dtype != dtype:  # texts of another length
                wider = max(dtype, rows.dtype, key=lambda each: each.itemsize)
                spool, dtype = self._widened(spool, dtype, wider), wider
                rows = rows.astype(wider)
            if (rows.dtype, rows.shape[1:]) != (dtype, shape[1:]):
                raise ValueError(f"{name}: rows of {rows.dtype} {rows.shape[1:]} cannot follow {dtype} {shape[1:]}")
            spool.write(rows.data)
            self._grown[name] = spool, dtype, (shape[0] + len(rows), *shape[1:])

    def _widened(self, spool: IO[bytes], dtype: np.dtype, wider: np.dtype) -> IO[bytes]:
        """The texts in ``spool`` with room for longer ones."""
        if dtype == wider:
            return spool
        wide = self._files.enter_context(tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115
        spool.seek(0)
        while part := spool.read(dtype.itemsize * ROWS):
            wide.write(np.frombuffer(part, dtype).astype(wider).data)
        spool.close()
        return wide

    def put(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set arrays that do not grow."""
        self._whole |= {name: np.asarray(array) for name, array in arrays.items()}

    def note(self, metadata: Sequence[Mapping[str, str]]) -> None:
        """Keep what the texts of all samples (``Samples.metadata``) have in common, as the array ``metadata``: JSON."""
        for texts in metadata:
            known = texts if self._texts is None else self._texts
            self._texts = {name: text for name, text in known.items() if texts.get(name) == text}
        if self._texts is not None:
            self._whole["metadata"] = np.array(json.dumps(self._texts, ensure_ascii=False))

    def save(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in self._whole.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            for name, (spool, dtype, shape) in self._grown.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(member, header)
                    spool.seek(0)
                    shutil.copyfileobj(spool, member)


@contextmanager
def growing_npz(path: Path | str) -> Iterator[GrowingArrays]:
    """Write an .npz file (``numpy.load`` reads it) whose arrays arrive in parts along their first axis::

        with growing_npz(folder / "clips.npz") as file:
            for clips in batches:
                file.append({"video": clips})
            file.put({"classes": names})

    Raises:
        TrainingError: the disk is full, or the folder is not writable. No file is left.
    """
    path = Path(path)
    with replacing(path) as partial, ExitStack() as files:
        arrays = GrowingArrays(path.parent, files)
        yield arrays
        arrays.save(partial)
