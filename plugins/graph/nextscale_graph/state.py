"""The state of a growing batch of graphs, and how splits change it. Flat arrays hold all graphs at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nextscale_graph.coarsen import BOTH, FIRST, SECOND
from nextscale_graph.graphs import GraphBatch


@dataclass(frozen=True)
class GrowthState:
    """The graphs so far.

    Shapes (N nodes and E edges of all graphs together, numbered consecutively):
        scale: the number of scales absorbed.
        target: B, the number of nodes that each graph is to have; 0 if not yet known.
        given: B, the requested target; None if it is to be drawn.
        sizes: B, the number of nodes that each graph has.
        edges: 2 E, sorted, the smaller end first.
        counts: B, how many nodes to split in this level.
        splits: N booleans, which nodes to split.
        masses: N, how many nodes each node becomes in the end, 0 if unknown; None if masses are not drawn.
        parts: N, the mass of the first child of each node that splits. spans: E, the mass of the smallest node so far
            that held both ends of the edge. Both are 0 if masses are unknown or not drawn.
        kept: N booleans, the nodes that a completion keeps; None otherwise.
        lineage: N, numbers of nodes within their graph that outlast splits (``GraphBatch``).
        node_types, edge_types: N A and E A' integers, the tokens of all attributes. They are zero until drawn, then one
            more than the token. None if neither nodes nor edges have attributes.
        typed: B booleans, whether all attributes have been drawn.
        graph_values: B P, the properties that were asked for; None if there are none.
        names: for each graph the names of the nodes that a completion was given, by their number in ``lineage``; empty
            if nothing was given.
    """

    scale: int
    target: Tensor
    given: Tensor | None
    sizes: Tensor
    edges: Tensor
    counts: Tensor
    splits: Tensor
    masses: Tensor | None
    parts: Tensor
    spans: Tensor
    kept: Tensor | None
    lineage: Tensor
    node_types: Tensor | None
    edge_types: Tensor | None
    typed: Tensor
    graph_values: Tensor | None = None
    names: tuple[tuple[str, ...], ...] = ()

    @property
    def offsets(self) -> Tensor:
        """B, the index of each graph's first node."""
        return self.sizes.cumsum(0) - self.sizes

    @property
    def graph_of(self) -> Tensor:
        """N, the graph that each node belongs to."""
        return torch.repeat_interleave(torch.arange(len(self.sizes), device=self.sizes.device), self.sizes)

    @property
    def edge_counts(self) -> Tensor:
        """B, the number of edges that each graph has."""
        return torch.bincount(self.graph_of[self.edges[0]], minlength=len(self.sizes))

    @property
    def growing(self) -> Tensor:
        """B booleans: graphs that have not reached their target size."""
        return self.sizes < self.target


def graphs_of(state: GrowthState) -> GraphBatch:
    """The graphs without attributes."""
    return GraphBatch(
        state.sizes,
        state.edges - state.offsets[state.graph_of[state.edges[0]]],
        state.edge_counts,
        lineage=state.lineage,
        given=given_names(state),
    )


def given_names(state: GrowthState) -> tuple[str, ...]:
    """N, ``GraphBatch.given``: a given node, or the child that took its place, keeps its number."""
    if not state.names:
        return ()
    own = (state.names[graph] for graph in state.graph_of.tolist())
    return tuple(
        names[number] if number < len(names) else "" for names, number in zip(own, state.lineage.tolist(), strict=True)
    )


def choose(state: GrowthState, tokens: Tensor, real: Tensor) -> Tensor:
    """N booleans: the nodes to split, chosen by tokens B M, which are positions within a graph.

    Tokens are taken in order. A token that points at a chosen node or at a neighbour of one has no effect.
    """
    late = tokens.shape[1]
    # The first token that points at each node.
    turn = torch.full((len(state.splits),), late, device=tokens.device)
    slots = torch.arange(late, device=tokens.device).expand_as(tokens)
    turn.scatter_reduce_(0, (state.offsets[:, None] + tokens)[real], slots[real], "amin")
    chosen = torch.zeros_like(turn, dtype=torch.bool)
    first, second = state.edges[:, (turn[state.edges] < late).all(0)]
    # Most tokens point at nodes that are not joined, so all but a few are settled in the first round: each round
    # chooses the nodes before whose turn none of their neighbours comes.
    while bool((turn < late).any()):
        both = torch.maximum(turn[first], turn[second]) < late
        now = turn < late
        now[torch.where(turn[first] < turn[second], second, first)[both]] = False
        chosen |= now
        blocked = now.clone()
        blocked[second[now[first]]] = blocked[first[now[second]]] = True
        turn = turn.masked_fill(blocked, late)
    return chosen


def split_edges(state: GrowthState) -> tuple[Tensor, Tensor, Tensor]:
    """The edges of nodes that split, ordered by split node, then by neighbour.

    Returns:
        T edge indices; T split nodes; T neighbours.
    """
    first, second = state.edges
    at_first, at_second = state.splits[first].nonzero()[:, 0], state.splits[second].nonzero()[:, 0]
    numbers = torch.cat([at_first, at_second])
    nodes = torch.cat([first[at_first], second[at_second]])
    others = torch.cat([second[at_first], first[at_second]])
    order = (nodes * len(state.splits) + others).argsort()
    return numbers[order], nodes[order], others[order]


def grown_numbers(state: GrowthState) -> Tensor:
    """N, the index of each node, or of its first child, after the split. The second child's index is one more."""
    after = torch.ones_like(state.splits, dtype=torch.long) + state.splits
    return after.cumsum(0) - after


def grown_masses(state: GrowthState) -> Tensor | None:
    """The mass of each node after the split."""
    if state.masses is None:
        return None
    place = grown_numbers(state)
    masses = place.new_zeros(len(place) + int(state.splits.sum()))
    masses[place] = torch.where(state.splits, state.parts, state.masses)
    masses[place[state.splits] + 1] = (state.masses - state.parts)[state.splits]
    return masses


def sibling_spans(state: GrowthState) -> Tensor:
    """The span of each edge between two siblings: the mass that they divide."""
    return (torch.zeros_like(state.parts) if state.masses is None else state.masses)[state.splits]


def within(sizes: Tensor) -> Tensor:
    """N, the position of each node within its graph, of graphs of these sizes (B)."""
    ends = sizes.cumsum(0)
    return torch.arange(int(sizes.sum()), device=sizes.device) - torch.repeat_interleave(ends - sizes, sizes)


def grown_lineage(state: GrowthState) -> Tensor:
    """First children keep the number of their parent. Second children are numbered on, in the order of their parents:
    a graph of n nodes has used the numbers 0 to n - 1."""
    place, more = grown_numbers(state), torch.zeros_like(state.sizes)
    more.scatter_add_(0, state.graph_of, state.splits.long())
    lineage = place.new_zeros(len(place) + int(state.splits.sum()))
    lineage[place] = state.lineage
    lineage[place[state.splits] + 1] = state.sizes[state.graph_of[state.splits]] + within(more)
    return lineage


def split(state: GrowthState, patterns: Tensor) -> GrowthState:
    """Split the chosen nodes; ``patterns`` (T) says where each edge of ``split_edges`` goes."""
    numbers, nodes, others = split_edges(state)
    place = grown_numbers(state)
    stays = torch.ones(state.edges.shape[1], dtype=torch.bool, device=place.device)
    stays[numbers] = False
    siblings = place[state.splits]
    to_first, to_second = (patterns == FIRST) | (patterns == BOTH), (patterns == SECOND) | (patterns == BOTH)
    edges = torch.cat(
        [
            place[state.edges[:, stays]],
            torch.stack([siblings, siblings + 1]),
            torch.stack([place[nodes[to_first]], place[others[to_first]]]),
            torch.stack([place[nodes[to_second]] + 1, place[others[to_second]]]),
        ],
        1,
    )
    edges = edges.sort(0).values
    total = len(place) + int(state.splits.sum())
    order = (edges[0] * total + edges[1]).argsort()
    edges = edges[:, order]
    inherited = state.spans[numbers]
    spans = torch.cat([state.spans[stays], sibling_spans(state), inherited[to_first], inherited[to_second]])[order]
    # Complete graphs may have attributes already.
    node_types = edge_types = None
    if state.node_types is not None and state.edge_types is not None:
        node_types = place.new_zeros(total, state.node_types.shape[1])
        node_types[place] = state.node_types
        old = state.edge_types[stays]
        edge_types = torch.cat([old, old.new_zeros(len(order) - len(old), old.shape[1])])[order]
    more = torch.zeros_like(state.sizes).scatter_add_(0, state.graph_of, state.splits.long())
    kept = None
    if state.kept is not None:  # the first child takes the place of the kept node
        kept = torch.zeros(total, dtype=torch.bool, device=place.device)
        kept[place] = state.kept
    return replace(
        state,
        sizes=state.sizes + more,
        edges=edges,
        splits=torch.zeros(total, dtype=torch.bool, device=place.device),
        masses=grown_masses(state),
        parts=place.new_zeros(total),
        spans=spans,
        kept=kept,
        lineage=grown_lineage(state),
        node_types=node_types,
        edge_types=edge_types,
    )
