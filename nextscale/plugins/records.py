"""What is known of plugins: a modality and who offers it, and what is wrong with a plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nextscale.modality import ModalitySpec


@dataclass(frozen=True)
class ModalityPlugin:
    """A modality and the distribution that offers it."""

    spec: ModalitySpec
    distribution: str
    version: str


@dataclass(frozen=True)
class BrokenPlugin:
    """One thing that is wrong with an entry point, in one line. The rest of the plugin may still work."""

    name: str
    distribution: str
    version: str
    error: str

    def __str__(self) -> str:
        return f"plugin {self.name!r} of {self.distribution} {self.version} is broken: {self.error}"


@dataclass(frozen=True)
class Clash:
    """A name that several entry points offer. ``offers`` holds the distribution and version of each."""

    kind: str
    name: str
    offers: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        offers = " and ".join(f"{distribution} {version}" for distribution, version in self.offers)
        distributions = {distribution for distribution, _ in self.offers}
        cure = "uninstall one of them" if len(distributions) > 1 else "it is registered twice"
        return f"{self.kind} {self.name!r} is offered by {offers}: {cure}"
