"""Readers of graph sources. Each returns the graphs it found (``raw.RawGraphs``)."""

from __future__ import annotations

from pathlib import Path

from nextscale.plugin import DataError, exists, reading, shown_path, unknown
from nextscale_graph.config import GraphLimitsConfig
from nextscale_graph.readers.arrays import read_npz
from nextscale_graph.readers.assemble import finish
from nextscale_graph.readers.folder import read_folder
from nextscale_graph.readers.generators import GENERATORS, generate
from nextscale_graph.readers.geometric import read_geometric
from nextscale_graph.readers.raw import RawGraphs
from nextscale_graph.readers.rules import Rules


def read_source(
    source: str, root: str, limits: GraphLimitsConfig | None = None, rules: Rules | None = None
) -> RawGraphs:
    """Read ``source``, whatever its kind.

    A generator's name wins over a folder of that name (write ``./planar`` for the folder).

    Raises:
        DataError: the source does not exist or cannot be read, or lacks an attribute or a property that ``rules`` name.
    """
    rules = rules or Rules(limits or GraphLimitsConfig())
    return finish(_read(source, root, rules), rules, shown_path(source))


def _read(source: str, root: str, rules: Rules) -> RawGraphs:
    limits = rules.limits
    if source in GENERATORS:
        return generate(source)
    if source.startswith("pyg:"):
        return read_geometric(source.removeprefix("pyg:"), root, rules=rules)
    if not source.strip():
        raise DataError("data source is empty: name a generator, a file, a folder or pyg:NAME")
    with reading(source, "data source"):
        path = Path(source).expanduser()
    if not exists(path):
        if path.name == source and not path.suffix:
            raise DataError(f"{unknown('data source', source, GENERATORS)}, and no file or folder has that name")
        raise DataError(f"data source {shown_path(source)} does not exist: no such file or folder")
    if path.is_dir():
        return read_folder(path, rules=rules)
    if path.suffix.lower() == ".npz":
        return read_npz(path, rules=rules)
    if path.suffix.lower() in (".smi", ".smiles"):
        from nextscale_graph.readers.smiles import read_smiles

        return read_smiles(path, limits)
    raise DataError(
        f"{shown_path(path)}: unknown file type; it should be .npz, .smi, or a folder with one graph per file"
    )
