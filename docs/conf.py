"""The documentation's build: `make docs`. Pages of commands and settings are generated from the code."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

project = "nextscale"
author = "the nextscale authors"
release = metadata.version("nextscale")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_show_copyright = False
html_title = "nextscale"
html_static_path: list[str] = []
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_custom_sections = [("Shapes", "params_style")]


def setup(app: Any) -> None:
    from generate import write_pages

    write_pages(Path(__file__).parent / "generated")
    app.connect("autodoc-process-docstring", _escape, priority=100)  # before napoleon writes markup of its own


def _escape(app: Any, what: str, name: str, found: object, options: object, lines: list[str]) -> None:
    """Docstrings write shapes as ``B C *grid`` and norms as ``|x|``, which reStructuredText takes for markup."""
    for i, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
        lines[i] = "``".join(parts)
