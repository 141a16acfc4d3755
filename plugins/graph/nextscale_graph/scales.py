"""The scales of a growing graph: their kinds, how many tokens each has, and which tokens are legal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nextscale_graph.coarsen import BOTH, FIRST
from nextscale_graph.state import GrowthState, split_edges
from nextscale_graph.structure import (
    COUNT,
    EDGE,
    HEADS,
    MASS,
    NODE,
    ROOTS,
    SIZE,
)  # fmt: skip


@dataclass(frozen=True)
class Scales:
    """The scales that ``GraphTokenizer`` draws, one after another.

    Args:
        vocabulary: V, the number of tokens.
        max_nodes: the largest number of nodes of a graph.
        masses: whether masses are drawn.
        node_codes, edge_codes: how many tokens each attribute of nodes and of edges has, by name, in the order in which
            they are drawn.
    """

    vocabulary: int
    max_nodes: int
    masses: bool
    node_codes: Mapping[str, int]
    edge_codes: Mapping[str, int]

    @property
    def typed(self) -> bool:
        return bool(self.node_codes or self.edge_codes)

    @cached_property
    def attributes(self) -> dict[str, tuple[str, int, int]]:
        """The scales that draw attributes, which they are named after: whether nodes or edges have the attribute, its
        column in the state, and its number of tokens."""
        return {
            f"{of} {name}": (of, column, count)
            for of, codes in ((NODE, self.node_codes), (EDGE, self.edge_codes))
            for column, (name, count) in enumerate(codes.items())
        }

    @cached_property
    def cycle(self) -> tuple[str, ...]:
        """The scales of one level, including the attributes, which are drawn once a graph is complete."""
        mass = (MASS,) if self.masses else ()
        return COUNT, NODE, *mass, EDGE, *self.attributes

    def kind(self, scale: int) -> str:
        return HEADS[scale] if scale < len(HEADS) else self.cycle[(scale - len(HEADS)) % len(self.cycle)]

    def mask(self, state: GrowthState, kind: str) -> Tensor:
        """B L: which tokens each sample has at this scale."""
        ready = ~state.growing & ~state.typed
        if kind in HEADS:
            lengths = torch.ones_like(state.sizes)
        elif kind == COUNT:
            lengths = state.growing.long()
        elif kind == NODE:
            lengths = state.counts
        elif kind == MASS:
            lengths = torch.bincount(state.graph_of[state.splits], minlength=len(state.sizes))
        elif kind == EDGE:
            nodes = split_edges(state)[1]
            lengths = torch.bincount(state.graph_of[nodes], minlength=len(state.sizes))
        else:
            lengths = (state.sizes if self.attributes[kind][0] == NODE else state.edge_counts) * ready
        longest = max(1, int(lengths.max()))
        return torch.arange(longest, device=lengths.device) < lengths[:, None]

    def legal(self, state: GrowthState, kind: str, mask: Tensor) -> Tensor:
        """B L V: which tokens are legal. Padding must be token 0."""
        code = torch.arange(self.vocabulary, device=mask.device)
        if kind == SIZE:
            legal_BV = (code >= 1) & (code <= self.max_nodes)
            legal_BV = legal_BV.expand(len(mask), -1)
            if state.given is not None:
                legal_BV = code == state.given[:, None]
        elif kind == ROOTS:
            legal_BV = (code >= 1) & (code <= state.target[:, None])
        elif kind == COUNT:
            most = torch.minimum(self.divisible(state).sum(1), state.target - state.sizes)
            legal_BV = (code >= 1) & (code <= most[:, None])
        elif kind == NODE:
            legal_BV = self.divisible(state)
        elif kind == MASS:
            assert state.masses is not None
            legal = torch.where(mask[..., None], False, code == 0)
            masses = state.masses[state.splits][:, None]
            legal[mask] = torch.where(masses > 0, (code >= 1) & (code < masses), code == 0)
            return legal
        else:
            number = 3 if kind == EDGE else self.attributes[kind][2]
            legal_BV = (code < number).expand(len(mask), -1)
        legal = torch.where(mask[..., None], legal_BV[:, None], code == 0)
        if kind == EDGE and state.kept is not None:  # an edge between kept nodes stays between them
            _, nodes, others = split_edges(state)
            kept = torch.zeros_like(mask)
            kept[mask] = state.kept[nodes] & state.kept[others]
            legal &= ~kept[..., None] | (code == FIRST) | (code == BOTH)
        return legal

    def groups(self, state: GrowthState, kind: str, mask: Tensor) -> Tensor:
        """B L: tokens of different groups may be drawn together; tokens of the same group are drawn one at a time."""
        numbers = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        groups = numbers.clone() if kind == MASS else torch.zeros_like(numbers)
        if kind == EDGE:  # one group per node that splits
            nodes = split_edges(state)[1]
            first = state.splits.long().cumsum(0) - 1
            before = torch.zeros_like(state.sizes).scatter_add_(0, state.graph_of, state.splits.long())
            before = before.cumsum(0) - before
            groups[mask] = (first - before[state.graph_of])[nodes]
        return groups

    def divisible(self, state: GrowthState) -> Tensor:
        """B V: the nodes that may split, which are all except those of mass one."""
        divisible = torch.zeros(len(state.sizes), self.vocabulary, dtype=torch.bool, device=state.sizes.device)
        within = torch.arange(len(state.splits), device=state.sizes.device) - state.offsets[state.graph_of]
        divisible[state.graph_of, within] = True if state.masses is None else state.masses != 1
        return divisible
