"""One message-passing layer on the graphs so far."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import scatter


class Layer(MessagePassing):
    """Edges receive messages from the other two sides of their triangles and from their ends. Then nodes receive
    messages from their edges and, with ``pooled``, from all nodes of their graph (like the master node of
    https://arxiv.org/abs/1704.01212)."""

    def __init__(self, width: int, pooled: bool) -> None:
        super().__init__(aggr="sum")
        self.norm_nodes, self.norm_edges = nn.LayerNorm(width), nn.LayerNorm(width)
        self.own, self.side, self.end = (
            nn.Linear(width, width),
            nn.Linear(width, width, bias=False),
            nn.Linear(width, width),
        )
        self.update_edges = nn.Sequential(nn.GELU(), nn.Linear(width, width))
        self.mix = nn.Linear(2 * width, width)
        self.from_edge, self.from_node = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.update_nodes = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width))
        self.to_graph, self.from_graph = None, None
        if pooled:
            self.to_graph, self.from_graph = nn.Linear(width, width), nn.Linear(width, width, bias=False)

    def forward(
        self, nodes: Tensor, edges: Tensor, ends: Tensor, triangles: Tensor, graph_of: Tensor, num_graphs: int
    ) -> tuple[Tensor, Tensor]:
        """nodes N D, edges E D. ``ends`` 2 E, ``triangles`` 3 T and ``graph_of`` N hold indices of nodes, edges and
        graphs."""
        normed, normed_nodes = self.norm_edges(edges), self.norm_nodes(nodes)
        own, side, end = self.own(normed), self.side(normed), self.end(normed_nodes)
        heard = torch.zeros_like(edges)
        # One side at a time and in place: concatenating the messages would copy them twice more.
        for hub, one, other in (triangles, triangles.roll(-1, 0), triangles.roll(-2, 0)):
            message = own.index_select(0, hub) + side.index_select(0, one)
            message = F.relu_(message.add_(side.index_select(0, other)))
            heard = heard.index_add_(0, hub, message.to(heard.dtype))
        of_edge, of_heard = self.mix.weight.chunk(2, 1)
        mixed = F.linear(normed, of_edge, self.mix.bias).add_(F.linear(heard, of_heard)).add_(own)
        for nodes_at in ends:
            mixed = mixed.add_(end.index_select(0, nodes_at))
        edges = edges + self.update_edges(mixed)
        x, edge = self.from_node(normed_nodes), self.from_edge(self.norm_edges(edges))
        told = self.propagate(ends, x=x, edge=edge) + self.propagate(ends.flip(0), x=x, edge=edge)
        if self.to_graph is not None and self.from_graph is not None:
            of_graph = scatter(F.relu(self.to_graph(normed_nodes)), graph_of, 0, num_graphs, "mean")
            told = told + self.from_graph(of_graph).index_select(0, graph_of)
        return nodes + self.update_nodes(torch.cat([normed_nodes, told], -1)), edges

    def message(self, x_j: Tensor, edge: Tensor) -> Tensor:  # type: ignore[override]
        """Works in place, because ``x_j`` was gathered for this call."""
        return F.relu_(x_j.add_(edge))
