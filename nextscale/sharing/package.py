"""What of a run is shared: its settings, its finished models, and what tells others what it is worth.

Never a pickle, data, tokens, checkpoints, or the paths of the author's computer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nextscale.api import load
from nextscale.config.dump import dump_run_config
from nextscale.errors import CheckpointError, ConfigError
from nextscale.hub import MODELS, RECORDS, SCORER, run_folder
from nextscale.sharing.card import model_card
from nextscale.sharing.private import Paths, without_paths
from nextscale.storage.files import read_json

REPORT = "report.html"
PICTURES = "pictures"
SUFFIXES = (".png", ".jpg", ".gif", ".webp", ".svg")
MAX_PICTURE_BYTES = 20 << 20
"""A larger picture is left out."""

Files = dict[str, bytes | Path]
"""What each shared file holds, or the file that it is a copy of."""


def package(run: str | Path, name: str, license: str | None = None) -> Files:
    """The files to share of a run. Loads its models, so that nothing is shared that does not load.

    Args:
        name: what others will load (``hf:me/digits``), for the model card.
        license: an identifier such as ``apache-2.0``, for the model card; None says that none is stated.

    Raises:
        CheckpointError, ConfigError, PluginError: the run is not finished, damaged, or names paths where they cannot be
            taken out.
    """
    folder = run_folder(run)
    model = load(folder, device="cpu")
    config, found = without_paths(model.config)
    environment, results = _record(folder / "env.json") or {}, _record(folder / "eval.json")
    command = environment.pop("command", None)  # names folders, and says nothing that the settings do not
    arguments = [part for text in command for part in str(text).split("=")] if isinstance(command, list) else []
    paths = Paths([*found, *arguments, folder, Path.cwd()])
    environment, results = (json.loads(paths.removed(json.dumps(each))) for each in (environment, results))
    pictures = shown_pictures(folder)
    card = model_card(model, name, config, environment, results, pictures, license)

    files: Files = {"config.yaml": dump_run_config(config).encode(), "README.md": card.encode()}
    for part in (*MODELS[1:], *(SCORER if model.scorer is not None else ())):
        files[part] = folder / part
        if part.endswith(".json") and (path := paths.first_in((folder / part).read_text(encoding="utf-8"))):
            raise ConfigError(
                f"{folder / part} names the path {path}. It has a checksum, so the path cannot be taken out: train "
                "with settings that name no path there"
            )
    for record, values in (("env.json", environment), ("eval.json", results)):
        if values:
            files[record] = (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
    if (folder / REPORT).is_file():
        files[REPORT] = paths.removed((folder / REPORT).read_text(encoding="utf-8", errors="replace")).encode()
    files |= pictures
    return files


def may_be_ours(name: str) -> bool:
    """Whether ``push`` could have written a file of this name."""
    folder, _, rest = name.partition("/")
    return name in (*MODELS, *SCORER, *RECORDS, REPORT) or (
        folder == PICTURES and "/" not in rest and Path(rest).suffix in SUFFIXES
    )


def shown_pictures(folder: Path) -> dict[str, Path]:
    """Pictures of a run by the name to share them under: those of the latest ``nextscale sample``, and of training."""
    samples = folder / "samples"
    found: dict[str, Path] = {}
    for stem, pattern in (
        ("film", "*/film.*"),
        ("grid", "*/grid.*"),
        ("samples", "samples.*"),
        ("reconstructions", "reconstructions.*"),
    ):
        fitting = [
            path
            for path in samples.glob(pattern)
            if path.suffix in SUFFIXES and path.is_file() and path.stat().st_size <= MAX_PICTURE_BYTES
        ]
        if fitting:
            latest = max(fitting, key=lambda path: path.stat().st_mtime)
            found[f"{PICTURES}/{stem}{latest.suffix}"] = latest
    return found


def _record(path: Path) -> dict[str, Any] | None:
    """A JSON object that a run may have.

    Raises:
        CheckpointError: it is damaged.
    """
    if not path.exists():
        return None
    values = read_json(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object")
    return values
