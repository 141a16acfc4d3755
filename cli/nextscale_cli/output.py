"""The folder that a command writes its samples to: never one that holds the files of another command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECORD = "command.json"
"""What was asked for, in every such folder. The same command may write there again: it writes the same files."""

MOST = 1000
"""Folders that are tried: none is free if their parent is a file, or cannot be read."""


class Output:
    """``--out``, or by default ``RUN/.../seed-SEED``, then ``seed-SEED-2`` and so on if others' files are there.

    ``options`` are the command's, by name, as typer gives them to it.

    Raises:
        ConfigError: ``--out`` holds others' files. Made at the start of a command, so that nothing is drawn in vain.
    """

    def __init__(self, command: str, options: Mapping[str, Any], default: Path) -> None:
        told = {key: _plain(value) for key, value in options.items() if key not in ("out", "device", "batch_size")}
        self.record = {"command": command, **told}
        self.out, self.default = options.get("out"), default
        self._choose()

    def open(self) -> Path:
        """Make the folder, and note in it what was asked for.

        Raises:
            ConfigError: as above.
            TrainingError: it cannot be written.
        """
        from nextscale.storage.files import write_json_atomic

        folder = self._choose()  # again, as another command may have run in the meantime
        write_json_atomic(folder / RECORD, self.record)
        return folder

    def _choose(self) -> Path:
        from nextscale.errors import ConfigError

        if self.out is None:
            for number in range(1, MOST):
                name = self.default.name if number == 1 else f"{self.default.name}-{number}"
                if self._is_free(folder := self.default.with_name(name)):
                    return folder
            raise ConfigError(f"no folder {self.default}-NUMBER can be used: name one with --out")
        if not self._is_free(self.out):
            what = "holds files of another command" if self.out.is_dir() else "is not a folder"
            raise ConfigError(f"{self.out} {what}: name another folder with --out")
        return self.out

    def _is_free(self, folder: Path) -> bool:
        """Whether there is no such folder, nothing in it, or only what the same command has written."""
        try:
            if all(entry.name.startswith(".") for entry in folder.iterdir()):
                return True
            return json.loads((folder / RECORD).read_bytes()) == self.record
        except FileNotFoundError:
            return not folder.exists()
        except (OSError, ValueError, RecursionError):
            return False


def _plain(value: Any) -> Any:
    """``value`` as it reads back from JSON; paths become absolute."""
    if isinstance(value, Path):
        return str(value.resolve())
    return list(value) if isinstance(value, list | tuple) else value
