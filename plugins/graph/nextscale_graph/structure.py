"""The stem's input at one scale: the graphs so far as one disjoint graph, and what is still undecided in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nextscale_graph.state import GrowthState, grown_masses, grown_numbers, sibling_spans, split_edges
from nextscale_graph.triangles import triangles

# The kinds of scales.
SIZE, ROOTS, COUNT, NODE, MASS, EDGE = "size", "roots", "count", "node", "mass", "edge"
HEADS = (SIZE, ROOTS)
# States of nodes and of edges.
PLAIN, CHILD, CHOSEN, BLOCKED, NODE_STATES = range(5)
FIXED, SIBLING, UNKNOWN, PRESENT, ABSENT, EDGE_STATES = range(6)


@dataclass
class Structure:
    """One scale of B graphs. It holds the nodes and edges only of graphs that have tokens at this scale.

    Shapes (N nodes, E edges of the disjoint graph; R tokens without padding, in the order of samples):
        kind: the kind of the scale.
        mask: B L, True for tokens that are not padding.
        numbers: B 3, per sample: nodes so far, target, and nodes to split. In scales that draw the number of nodes to
            split, the last is the usual number (``usual_count``).
        graph_of: N, the sample of each node. offsets: B, the first node of each sample.
        node_states, edge_states: N and E.
        masses, spans: N and E, as in ``GrowthState``; None if masses are not drawn.
        node_types, edge_types: N A and E A', as in ``GrowthState``.
        edges: 2 E. triangles: 3 T edge indices.
        places: what each token is about. Edge scales: R 2, the edges to the first and to the second child. Attribute
            scales: R 1, the node or edge. Mass scales: R 1, the mass to divide. Empty at other scales.
        draws: at attribute scales, whether nodes or edges have the attribute (``NODE``, ``EDGE``), and its column.
    """

    kind: str
    mask: Tensor
    numbers: Tensor
    graph_of: Tensor
    offsets: Tensor
    node_states: Tensor
    edge_states: Tensor
    masses: Tensor | None
    spans: Tensor | None
    node_types: Tensor | None
    edge_types: Tensor | None
    edges: Tensor
    triangles: Tensor
    places: Tensor
    draws: tuple[str, int] | None = None

    @property
    def num_samples(self) -> int:
        return len(self.mask)

    def only(self, active: Tensor) -> Structure:
        """The structure without graphs and tokens of samples that are not ``active`` (B booleans)."""
        if bool(active.all()):
            return self
        nodes = active[self.graph_of]
        edges = nodes[self.edges[0]]
        triangles = edges[self.triangles[0]]
        new_node, new_edge = nodes.cumsum(0) - 1, edges.cumsum(0) - 1
        places = self.places
        if len(places):
            places = places[active[self.mask.nonzero()[:, 0]]]
        if len(places) and self.kind != MASS:
            places = (new_node if self.draws is not None and self.draws[0] == NODE else new_edge)[places]
        sizes = torch.bincount(self.graph_of, minlength=self.num_samples) * active
        return replace(
            self,
            mask=self.mask & active[:, None],
            graph_of=self.graph_of[nodes],
            offsets=sizes.cumsum(0) - sizes,
            node_states=self.node_states[nodes],
            edge_states=self.edge_states[edges],
            masses=None if self.masses is None else self.masses[nodes],
            spans=None if self.spans is None else self.spans[edges],
            node_types=None if self.node_types is None else self.node_types[nodes],
            edge_types=None if self.edge_types is None else self.edge_types[edges],
            edges=new_node[self.edges[:, edges]],
            triangles=new_edge[self.triangles[:, triangles]],
            places=places,
        )


def restrict(state: GrowthState, active: Tensor) -> GrowthState:
    """The state without the nodes and edges of graphs that are not ``active`` (B booleans)."""
    if bool(active.all()):
        return state
    stays = active[state.graph_of]
    number = stays.cumsum(0) - 1
    edges_stay = stays[state.edges[0]]
    return replace(
        state,
        sizes=state.sizes * active,
        edges=number[state.edges[:, edges_stay]],
        splits=state.splits[stays],
        masses=None if state.masses is None else state.masses[stays],
        parts=state.parts[stays],
        spans=state.spans[edges_stay],
        kept=None if state.kept is None else state.kept[stays],
        lineage=state.lineage[stays],
        node_types=None if state.node_types is None else state.node_types[stays],
        edge_types=None if state.edge_types is None else state.edge_types[edges_stay],
    )


def without_graph(
    kind: str, state: GrowthState, mask: Tensor, counts: Tensor, places: Tensor | None = None
) -> Structure:
    """The structure of a scale that depends on numbers only; ``counts`` is the third column of
    ``Structure.numbers``."""
    none = mask.new_zeros(0, dtype=torch.long)
    node_types, edge_types = (None if each is None else each[:0] for each in (state.node_types, state.edge_types))
    masses = None if state.masses is None else none
    places = none.view(0, 1) if places is None else places
    return Structure(
        kind, mask, _numbers(state, state.sizes, counts), none, torch.zeros_like(state.sizes), none, none, masses,
        masses, node_types, edge_types, none.view(2, 0), none.view(3, 0), places,
    )  # fmt: skip


def of_graph(
    kind: str, state: GrowthState, mask: Tensor, active: Tensor, draws: tuple[str, int] | None = None
) -> Structure:
    """The structure of a scale that chooses nodes or draws an attribute: the graph as it is, with the attributes drawn
    so far."""
    part = restrict(state, active)
    num_nodes, num_edges = len(part.splits), part.edges.shape[1]
    about = 0 if draws is None else num_nodes if draws[0] == NODE else num_edges
    places = torch.arange(about, device=mask.device)[:, None]
    return Structure(
        kind,
        mask,
        _numbers(state, part.sizes, state.counts),
        part.graph_of,
        part.offsets,
        torch.full((num_nodes,), PLAIN, device=mask.device),
        torch.full((num_edges,), FIXED, device=mask.device),
        part.masses,
        None if part.masses is None else part.spans,
        part.node_types,
        part.edge_types,
        part.edges,
        triangles(part.edges, num_nodes),
        places,
        draws,
    )


def of_split(state: GrowthState, mask: Tensor, active: Tensor) -> Structure:
    """The structure of a scale that says where edges go: the children, and every pair of nodes that may be joined."""
    part = restrict(state, active)
    edges_split, nodes, others = split_edges(part)
    place = grown_numbers(part)
    total = len(place) + int(part.splits.sum())
    stays = torch.ones(part.edges.shape[1], dtype=torch.bool, device=mask.device)
    stays[edges_split] = False
    children, ends = place[part.splits], place[others]
    inherited = part.spans[edges_split]
    groups = [
        (FIXED, place[part.edges[:, stays]], part.spans[stays]),
        (SIBLING, torch.stack([children, children + 1]), sibling_spans(part)),
        (UNKNOWN, torch.stack([place[nodes], ends]), inherited),
        (UNKNOWN, torch.stack([place[nodes] + 1, ends]), inherited),
    ]
    states = torch.cat([torch.full((edges.shape[1],), kind, device=mask.device) for kind, edges, _ in groups])
    spans = torch.cat([each for _, _, each in groups])
    edges = torch.cat([edges for _, edges, _ in groups], 1).sort(0).values
    order = (edges[0] * total + edges[1]).argsort()
    edges, states, spans = edges[:, order], states[order], spans[order]
    where = torch.empty_like(order)
    where[order] = torch.arange(len(order), device=order.device)
    first_child = groups[0][1].shape[1] + groups[1][1].shape[1]
    places = where[first_child:].view(2, -1).T

    after = part.sizes + torch.zeros_like(part.sizes).scatter_add_(0, part.graph_of, part.splits.long())
    node_states = torch.full((total,), PLAIN, device=mask.device)
    node_states[children] = node_states[children + 1] = CHILD
    grown = replace(part, sizes=after)
    # Graphs that still grow have no attributes yet.
    node_types, edge_types = (
        None if each is None else each.new_zeros(count, each.shape[1])
        for each, count in ((state.node_types, total), (state.edge_types, len(states)))
    )
    return Structure(
        EDGE,
        mask,
        _numbers(state, after, state.counts),
        grown.graph_of,
        grown.offsets,
        node_states,
        states,
        grown_masses(part),
        None if part.masses is None else spans,
        node_types,
        edge_types,
        edges,
        triangles(edges, total),
        places,
    )


def _numbers(state: GrowthState, sizes: Tensor, counts: Tensor) -> Tensor:
    return torch.stack([sizes, state.target, counts], 1)
