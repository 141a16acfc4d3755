"""The documentation's build: `make docs`. Pages of commands and settings are generated from the code."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "nextscale"
author = "the nextscale authors"
release = version("nextscale")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "nextscale"
html_static_path: list[str] = []
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
nitpicky = False


def setup(app: object) -> None:
    from generate import write_pages

    write_pages(Path(__file__).parent / "generated")
