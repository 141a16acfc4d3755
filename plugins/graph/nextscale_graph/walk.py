"""Which tokens of a scale touch each other, and an order in which the edges of a split node follow each other.

Where a node of a triangulation splits, each child takes a run of the neighbours around it. So the tokens of its edges
are drawn around the node: whether a run goes on is easy to tell from the token before, and hard to tell from tokens
anywhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale_graph.structure import EDGE, NODE, Structure


def touching(part: Structure) -> Tensor:
    """2 P: pairs of tokens, by their number among the R real ones of the scale, both ways round. Edges of a split node
    touch if their other ends are joined; attributes of nodes, if the nodes are; attributes of edges, if they share an
    end."""
    tokens = torch.arange(len(part.places), device=part.mask.device)
    none = tokens.new_zeros(2, 0)
    if part.kind == EDGE and len(tokens):
        token = torch.full_like(part.edge_states, -1)
        token[part.places[:, 0]] = tokens  # the edges to both children lie in alike triangles: one of them tells
        sides = token[part.triangles]
        pairs = torch.cat([sides[[0, 1]], sides[[0, 2]], sides[[1, 2]]], 1)
        pairs = pairs[:, (pairs >= 0).all(0)]
        return torch.cat([pairs, pairs.flip(0)], 1)
    if part.draws is None or not len(tokens):
        return none
    if part.draws[0] == NODE:
        return torch.cat([part.edges, part.edges.flip(0)], 1)
    return sharing_ends(part.edges)


def sharing_ends(edges: Tensor) -> Tensor:
    """2 P: pairs of edges (2 E, of a simple graph) that share an end, both ways round."""
    nodes, order = edges.flatten().sort(stable=True)
    number = torch.arange(edges.shape[1], device=edges.device).repeat(2)[order]
    sizes = torch.bincount(nodes)
    each = sizes[nodes]
    one = torch.repeat_interleave(torch.arange(len(nodes), device=edges.device), each)
    within = torch.arange(len(one), device=edges.device) - (each.cumsum(0) - each)[one]
    pairs = torch.stack([number[one], number[(sizes.cumsum(0) - sizes)[nodes][one] + within]])
    return pairs[:, pairs[0] != pairs[1]]


def walk(groups: Tensor, pairs: Tensor) -> Tensor:
    """M integers: the place of each token in a walk through its group (``groups``, M integers).

    Each walk begins at a token that few touch, and goes on to one that touches the last (``pairs``, 2 P, both ways
    round) as long as there is one. So it goes round a ring, and along a chain from one end to the other.
    """
    groups = groups.unique(return_inverse=True)[1]
    number = torch.arange(len(groups), device=groups.device)
    degree = torch.bincount(pairs[0], minlength=len(groups))
    place, near = torch.full_like(groups, -1), torch.zeros_like(groups, dtype=torch.bool)
    key, never = degree * len(groups) + number, len(groups) ** 2 + len(groups)
    step = 0
    while bool((place < 0).any()):
        wanted = torch.where(near, key, key + never).masked_fill(place >= 0, 3 * never)
        best = torch.full((int(groups.max()) + 1,), 3 * never, device=groups.device)
        now = (wanted == best.scatter_reduce(0, groups, wanted, "amin")[groups]) & (place < 0)
        place[now] = step
        near = torch.zeros_like(near)
        near[pairs[1][now[pairs[0]]]] = True
        step += 1
    return place
