"""How a batch of graphs grows: its initial state, and how each scale's tokens change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from nextscale_graph.graphs import GraphBatch
from nextscale_graph.scales import Scales
from nextscale_graph.state import GrowthState, choose, split, within
from nextscale_graph.structure import COUNT, EDGE, HEADS, MASS, NODE, ROOTS, SIZE


def begin(
    num_samples: int, scales: Scales, given: Tensor | None, device: torch.device, properties: Tensor | None = None
) -> GrowthState:
    """Graphs of one node. Their target size is ``given`` (B), or is drawn if that is None. ``properties`` (B P) are
    those that were asked for."""
    zeros = torch.zeros(num_samples, dtype=torch.long, device=device)
    return GrowthState(
        scale=0,
        target=zeros,
        given=given,
        sizes=zeros + 1,
        edges=zeros.new_zeros(2, 0),
        counts=zeros,
        splits=zeros.bool(),
        masses=zeros if scales.masses else None,
        parts=zeros,
        spans=zeros[:0],
        kept=None,
        lineage=zeros,
        node_types=_no_tokens(zeros, scales.node_codes) if scales.typed else None,
        edge_types=_no_tokens(zeros[:0], scales.edge_codes) if scales.typed else None,
        typed=torch.full((num_samples,), not scales.typed, device=device),
        graph_values=properties,
    )


def begin_with(samples: GraphBatch, target: Tensor, state: GrowthState) -> GrowthState:
    """The initial ``state``, with the graphs to be completed to ``target`` nodes (B)."""
    start = samples.sizes.cumsum(0) - samples.sizes
    shift = torch.repeat_interleave(start, samples.edge_counts)
    nodes = torch.zeros(int(samples.sizes.sum()), dtype=torch.bool, device=samples.sizes.device)
    return replace(
        state,
        scale=len(HEADS),
        target=target.to(samples.sizes),
        sizes=samples.sizes,
        edges=samples.edges + shift,
        splits=nodes,
        parts=nodes.long(),
        spans=torch.zeros_like(samples.edges[0]),
        kept=~nodes,
        lineage=within(samples.sizes),
        names=tuple(samples[[i]].given for i in range(len(samples))) if samples.given else (),
    )


def advance(state: GrowthState, scales: Scales, tokens: Tensor) -> GrowthState:
    """The state after the tokens (B L) of its current scale."""
    kind = scales.kind(state.scale)
    mask = scales.mask(state, kind)
    state = replace(state, scale=state.scale + 1)
    if kind == SIZE:
        return replace(state, target=tokens[:, 0])
    if kind == ROOTS:
        return _rooted(state, scales, tokens[:, 0])
    if kind == COUNT:
        return replace(state, counts=tokens[:, 0] * state.growing)
    if kind == NODE:
        return replace(state, splits=choose(state, tokens, mask))
    if kind == MASS:
        parts = torch.zeros_like(state.parts)
        parts[state.splits] = tokens[mask]
        return replace(state, parts=parts)
    if kind == EDGE:
        return split(state, tokens[mask])
    assert state.node_types is not None and state.edge_types is not None
    of, column, _ = scales.attributes[kind]
    drawn = (state.node_types if of == NODE else state.edge_types).clone()
    owners = state.graph_of if of == NODE else state.graph_of[state.edges[0]]
    drawn[mask.any(1)[owners], column] = tokens[mask] + 1
    state = replace(state, node_types=drawn) if of == NODE else replace(state, edge_types=drawn)
    return replace(state, typed=state.typed | ~state.growing) if kind == scales.cycle[-1] else state


def _no_tokens(items: Tensor, codes: Mapping[str, int]) -> Tensor:
    """N A zeros for N ``items``: no attribute has been drawn."""
    return torch.zeros(len(items), len(codes), dtype=torch.long, device=items.device)


def _rooted(state: GrowthState, scales: Scales, roots: Tensor) -> GrowthState:
    """The state with ``roots`` (B) nodes per graph. Each becomes a component."""
    nodes = torch.zeros(int(roots.sum()), dtype=torch.bool, device=roots.device)
    # A single root has the whole mass; how several roots share it is not drawn.
    masses = torch.where(roots == 1, state.target, 0).repeat_interleave(roots)
    return replace(
        state,
        sizes=roots,
        splits=nodes,
        masses=masses if scales.masses else None,
        parts=torch.zeros_like(masses),
        lineage=within(roots),
        node_types=_no_tokens(nodes, scales.node_codes) if scales.typed else None,
    )
