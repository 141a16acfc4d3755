"""The contract that every modality keeps, to run against a plugin of your own (extra: ``test``).

``checks`` and ``sampling_checks`` hold one plain function an invariant (they need neither pytest nor hypothesis),
``strategies`` what hypothesis draws, ``contract`` the base classes of a plugin's tests::

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
