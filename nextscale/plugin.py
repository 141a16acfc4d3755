"""The public surface for plugin authors: everything that a plugin may import from nextscale.

::

    from nextscale.plugin import GridModality, ModalitySpec, Section, build_grid_tokenizer, hookimpl

``plugin.pyi`` beside this file lists the names, for type checkers and for this module. Each name is imported on first
use, so that an entry module can import from here without importing torch. ``API_VERSION`` is raised when a name is
removed or changes incompatibly.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any


def _listed() -> dict[str, str]:
    """Each public name, and the module that defines it."""
    tree = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_MODULE_OF = _listed()

__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(
            f"module 'nextscale.plugin' has no attribute {name!r}: it is not part of the public surface"
        )
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
