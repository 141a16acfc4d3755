"""The contract that every modality must meet. Run it against your own plugin (extra: ``test``).

``checks``, ``model_checks`` and ``sampling_checks`` hold one plain function per invariant, which needs neither pytest
nor hypothesis. ``strategies`` holds the hypothesis strategies, ``contract`` and ``modality_contract`` the base classes
of a plugin's tests::

    from nextscale.testing import ModalityContract

    class TestAudio(ModalityContract):
        ...

``CONTRACT_VERSION`` grows when a check is added or becomes stricter.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextscale.testing.contract import TokenizerContract as TokenizerContract
    from nextscale.testing.modality_contract import ModalityContract as ModalityContract

CONTRACT_VERSION = 2

_LAZY = {
    "ModalityContract": "nextscale.testing.modality_contract",
    "TokenizerContract": "nextscale.testing.contract",
}

__all__ = ["CONTRACT_VERSION", "ModalityContract", "TokenizerContract"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'nextscale.testing' has no attribute {name!r}")
