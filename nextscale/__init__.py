"""nextscale: next-scale autoregressive modelling for any kind of data.

In a notebook::

    import nextscale

    model = nextscale.load("runs/digits")
    samples = model.generate(16, label=3, guidance=2.0, seed=0)

Importing the package does not import torch: ``load`` and ``train`` are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextscale.api import load as load
    from nextscale.start import train as train

    __version__: str

_LAZY = {"load": "nextscale.api", "train": "nextscale.start"}

__all__ = ["__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("nextscale")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'nextscale' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
