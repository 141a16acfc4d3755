"""The triangles of a graph, in time that grows with its edges as long as no part of it is dense."""

from __future__ import annotations

import torch
from torch import Tensor


def triangles(edges: Tensor, num_nodes: int) -> Tensor:
    """3 T: the edge indices of every triangle of a graph. ``edges`` is 2 E, sorted, the smaller end first.

    Every edge is directed from the end of smaller degree, so that few edges leave each node, even a hub (Chiba and
    Nishizeki 1985: in all, at most E^1.5 pairs are looked up).
    """
    num_edges, device = edges.shape[1], edges.device
    if not num_edges:
        return edges.new_zeros(3, 0)
    rank = torch.bincount(edges.flatten(), minlength=num_nodes) * num_nodes + torch.arange(num_nodes, device=device)
    first, second = edges
    turned = rank[first] > rank[second]
    tail, head = torch.where(turned, second, first), torch.where(turned, first, second)
    tail, order = tail.sort(stable=True)
    head = head[order]
    ends = torch.bincount(tail, minlength=num_nodes).cumsum(0)
    # Pair every edge with each later edge of the same tail, then look up the third side.
    later = ends[tail] - torch.arange(num_edges, device=device) - 1
    one = torch.repeat_interleave(torch.arange(num_edges, device=device), later)
    begins = later.cumsum(0) - later
    two = one + 1 + torch.arange(len(one), device=device) - begins[one]
    keys = first * num_nodes + second
    wanted = torch.minimum(head[one], head[two]) * num_nodes + torch.maximum(head[one], head[two])
    third = torch.searchsorted(keys, wanted).clamp_max(num_edges - 1)
    closed = keys[third] == wanted
    sides = torch.stack([order[one[closed]], order[two[closed]], third[closed]]).sort(0).values
    return sides[:, (sides[0] * num_edges + sides[1]).argsort()]
