"""The contract that every modality must meet. Run it against your own plugin (extra: ``test``).

The modules ``*checks`` hold one plain function per invariant, which needs neither pytest nor hypothesis; a check that
fails raises ``invariants.ContractError``, which names the invariant, where it does not hold, and a likely cause.
``strategies`` holds the hypothesis strategies, ``contract`` and ``modality_contract`` the base classes of a plugin's
tests::

    from nextscale.testing import ModalityContract

    class TestAudio(ModalityContract):
        ...

``run.check_modality`` runs the same contract on an installed modality without pytest. ``CONTRACT_VERSION`` grows when a
check is added or becomes stricter.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextscale.testing.contract import TokenizerContract as TokenizerContract
    from nextscale.testing.modality_contract import ModalityContract as ModalityContract

CONTRACT_VERSION = 4

_LAZY = {
    "ModalityContract": "nextscale.testing.modality_contract",
    "TokenizerContract": "nextscale.testing.contract",
}

if "pytest" in sys.modules:  # bare asserts of these modules then say what they compared
    _names = [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)]
    sys.modules["pytest"].register_assert_rewrite(*(name for name in _names if name not in sys.modules))

__all__ = ["CONTRACT_VERSION", "ModalityContract", "TokenizerContract"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'nextscale.testing' has no attribute {name!r}")
