"""How graphs are read: limits, which attributes, and what is mended instead of refused."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field

from nextscale.plugin import NextscaleWarning
from nextscale_graph.config import CLEANING, GraphDataConfig, GraphLimitsConfig, listed

_SAID = {
    "loops": ("self-loop", "dropped"),
    "duplicates": ("repeated edge", "dropped; the first one counts"),
    "direction": ("directed graph", "read as undirected"),
    "components": ("node", "outside the largest component of its graph dropped"),
}


@dataclass
class Rules:
    """What readers go by.

    Args:
        limits: how large graphs may be.
        clean: what is mended (``config.CLEANING``). Everything else that makes no simple graph is refused.
        attributes: the attributes of nodes and edges that are read; None reads all.
        properties: the properties of graphs that are read; None reads all that every graph has.
    """

    limits: GraphLimitsConfig = field(default_factory=GraphLimitsConfig)
    clean: frozenset[str] = frozenset()
    attributes: tuple[str, ...] | None = None
    properties: tuple[str, ...] | None = None
    cleaned: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: GraphDataConfig) -> Rules:
        wanted = listed(config.attributes)
        attributes = None if wanted == ("all",) else () if wanted == ("none",) else wanted
        steps = listed(config.clean)
        clean = frozenset(CLEANING if steps == ("all",) else () if steps == ("none",) else steps)
        return cls(config.limits, clean, attributes, listed(config.property))

    def wants(self, name: str) -> bool:
        return self.attributes is None or name in self.attributes

    def report(self, source: str) -> None:
        """Say in one line each what was mended, and which attributes were left out."""
        parts = []
        for step in CLEANING:
            what, became = _SAID[step]
            if count := self.cleaned[step]:
                parts.append(f"{count:,} {what}{'s' if count > 1 else ''} {became}")
        if parts:
            warnings.warn(f"{source}: cleaned: {'; '.join(parts)}", NextscaleWarning, stacklevel=3)
        if self.left_out:
            text = "; ".join(f"{name} ({reason})" for name, reason in list(self.left_out.items())[:5])
            warnings.warn(f"{source}: attributes that are not read: {text}", NextscaleWarning, stacklevel=3)
