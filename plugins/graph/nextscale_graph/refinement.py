"""What a refiner needs to know of graphs: what a drawn token says, and logits given the tokens drawn before."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from nextscale.plugin import Refinement, ScaleInput
from nextscale_graph.division import OUTSIDE
from nextscale_graph.memory import Memory
from nextscale_graph.scales import Scales
from nextscale_graph.state import within
from nextscale_graph.structure import EDGE, NODE, Structure
from nextscale_graph.walk import touching, walk

UNLIKELY = -1e4
"""The logit of a token that is drawn only if nothing else can be."""


class Scores(Protocol):
    """What a refinement asks of the stem (``GraphStem``)."""

    node_score: nn.Sequential
    ask_node: nn.Linear

    def part_logits(self, part: Structure, hidden_BLD: Tensor, memory: Memory, node: int, edge: int) -> Tensor: ...

    def padded(self, logits: Tensor) -> Tensor: ...

    def joined(self, parts: list[Tensor]) -> Tensor: ...


class GraphRefinement(Refinement):
    """Tokens are described by what they point at, not by its number. Numbers matter only where the walk around a split
    node meets a tie, and for the order of attributes.

    The two children of a node are alike to the stem. The refiner must tell them apart by the edges drawn before, so it
    scores the three ways of an edge as well (``ways``, zero at first).

    Args:
        stem: computes the logits; its weights are not part of this module.
        width: D, of the stem.
        refiner_width: R.
        scales: the scales that are drawn, with their attributes.
    """

    def __init__(self, stem: Scores, width: int, refiner_width: int, scales: Scales) -> None:
        super().__init__()
        self._stem = (stem,)
        self.node = nn.Linear(width, refiner_width)
        self.way, self.ways = nn.Embedding(3, refiner_width), nn.Linear(width, 3)
        self.values = nn.ModuleList(nn.Embedding(count, refiner_width) for _, _, count in scales.attributes.values())
        self.column = {kind: number for number, kind in enumerate(scales.attributes)}
        self.refiner_width = refiner_width
        nn.init.zeros_(self.ways.weight)
        nn.init.zeros_(self.ways.bias)

    def describe(self, tokens: Tensor, memory: Memory) -> Tensor:
        said = []
        for part, (token, node, _) in zip(memory.structure, memory.begins, strict=True):
            mask = part.mask
            own = tokens[:, token : token + mask.shape[1]][mask]
            if part.kind == NODE and len(own):
                of = part.offsets.repeat_interleave(mask.sum(1))
                values = self.node(memory.nodes[node + of + own])
            elif part.kind == EDGE:
                values = self.way(own)
            elif part.draws is not None:
                values = self.values[self.column[part.kind]](own)
            else:
                values = self.way.weight.new_zeros(len(own), self.refiner_width)
            said.append(
                values.new_zeros(*mask.shape, self.refiner_width).index_put(mask.nonzero(as_tuple=True), values)
            )
        return torch.cat(said, 1)

    def logits(self, hidden_BLD: Tensor, memory: Memory, tokens: Tensor, places: Tensor) -> Tensor:
        return self._stem[0].joined(self.logits_by_scale(hidden_BLD, memory, tokens, places))

    def logits_by_scale(self, hidden_BLD: Tensor, memory: Memory, tokens: Tensor, places: Tensor) -> list[Tensor]:
        stem, out = self._stem[0], []
        for part, (token, node, edge) in zip(memory.structure, memory.begins, strict=True):
            span = slice(token, token + part.mask.shape[1])
            own, at = hidden_BLD[:, span], places[:, span]
            refined = bool((at >= 0).any())
            if refined and part.kind == NODE:
                logits = self._node_logits(part, own, memory, node, tokens[:, span], at)
            else:
                logits = stem.part_logits(part, own, memory, node, edge)
            if refined and part.kind == EDGE:
                logits = logits + torch.where(part.mask[..., None], self.ways(own), 0).to(logits.dtype)
            out.append(stem.padded(logits))
        return out

    def _node_logits(
        self, part: Structure, hidden_BLD: Tensor, memory: Memory, node: int, tokens: Tensor, places: Tensor
    ) -> Tensor:
        """B L N'. Nodes chosen before, and their neighbours, are unlikely."""
        stem, mask, size = self._stem[0], part.mask, len(part.graph_of)
        late, (first, second) = mask.shape[1], part.edges
        turn = torch.full((size,), late, device=mask.device)
        turn.scatter_reduce_(0, (part.offsets[:, None] + tokens)[mask], places[mask], "amin")
        taken = turn.scatter_reduce(0, first, turn[second], "amin").scatter_reduce(0, second, turn[first], "amin")
        taken = taken.masked_fill(memory.blocked[node : node + size], -1)
        at = (part.graph_of, within(torch.bincount(part.graph_of, minlength=len(mask))))
        shape = (len(mask), int(part.numbers[:, 0].max()))
        own = memory.nodes[node : node + size]
        nodes_BND = own.new_zeros(*shape, own.shape[1]).index_put(at, own)
        taken_BN = torch.full(shape, late, device=mask.device).index_put(at, taken)
        real_BN = torch.zeros(shape, dtype=torch.bool, device=mask.device).index_put(at, torch.ones_like(at[0]).bool())
        scores = stem.node_score(nodes_BND[:, None] + stem.ask_node(hidden_BLD)[:, :, None])[..., 0]
        scores = scores.to(hidden_BLD.dtype).masked_fill(taken_BN[:, None] < places[..., None], UNLIKELY)
        return scores.masked_fill(~real_BN[:, None], OUTSIDE).masked_fill(~mask[..., None], 0)

    def order(self, inputs: ScaleInput) -> Tensor:
        """Edges of a split node in a walk around it; all other tokens as they come."""
        order = torch.arange(inputs.length, device=inputs.scale_ids.device).repeat(inputs.num_samples, 1)
        groups, pairs, where, count = [], [], [], 0
        for part, sample, place in _tokens(inputs):
            if part.kind == EDGE and len(sample) and inputs.groups is not None:
                own = sample * inputs.length + inputs.groups[sample, place]  # no sample has more groups than tokens
                groups.append(own + (int(groups[-1].max()) + 1 if groups else 0))
                pairs.append(touching(part) + count)
                where.append((sample, place))
                count += len(sample)
        if groups:
            walked = walk(torch.cat(groups), torch.cat(pairs, 1))
            order[torch.cat([s for s, _ in where]), torch.cat([p for _, p in where])] = walked
        return order

    def related(self, inputs: ScaleInput) -> Tensor:
        found = []
        for part, sample, place in _tokens(inputs):
            one, other = touching(part)
            if len(sample):
                found.append(torch.stack([sample[one], place[one], place[other]], 1))
        return torch.cat(found) if found else inputs.scale_ids.new_zeros(0, 3)


def _tokens(inputs: ScaleInput) -> list[tuple[Structure, Tensor, Tensor]]:
    """Each scale, with the sample and the place along L of its tokens."""
    begin, out = 0, []
    for part in inputs.structure:
        sample, place = part.mask.nonzero(as_tuple=True)
        out.append((part, sample, begin + place))
        begin += part.mask.shape[1]
    return out
