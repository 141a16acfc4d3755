"""The network on the graphs so far: messages over triangles and edges, and scores for every kind of token.

Nodes are distinguished only by their states and edges, so outputs permute as the nodes do. The two children of a node
are told apart only by edges already revealed, so swapping them swaps "first" and "second".
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.utils import scatter

from nextscale.plugin import ConfigError, ScaleInput, Stem
from nextscale_graph.coarsen import BOTH, FIRST, SECOND
from nextscale_graph.config import GraphTokenizerConfig
from nextscale_graph.division import OUTSIDE, Division
from nextscale_graph.frequencies import UNSEEN
from nextscale_graph.inputs import MASSES, NUMBERS, describe_masses, describe_numbers, reveal
from nextscale_graph.layer import Layer
from nextscale_graph.memory import Memory
from nextscale_graph.refinement import UNLIKELY, GraphRefinement
from nextscale_graph.scales import Scales
from nextscale_graph.structure import (
    CHOSEN,
    COUNT,
    EDGE,
    EDGE_STATES,
    HEADS,
    MASS,
    NODE,
    NODE_STATES,
    ROOTS,
    Structure,
)  # fmt: skip
from nextscale_graph.tilt import Tilt

CANDIDATE = 7
"""Number of features of a candidate number of nodes to split."""
NODE_TYPE, EDGE_TYPE = "node type", "edge type"
"""Scales whose weights release 0.1.0 named."""
REGISTER = 16
"""Logits are padded to a multiple of this. Their exponentials are then added in the same order whatever the width, so
that losses do not depend on ``max_nodes`` or on the rest of the batch."""
NEVER = math.log(UNSEEN)
"""The logit of a number of components that no graph of the data has."""


class GraphStem(Stem):
    """Computes token embeddings, B L D, and token logits.

    Args:
        width: D, of nodes, edges and embeddings.
        config: the tokenizer section.
        scales: the scales that are drawn, with V and the attributes.
        sizes: V, logits of the number of nodes.
        roots: as ``root_logits`` returns them: logits of the number of components, and the row of each number of nodes.
        conditioned: whether graphs are drawn for properties, which then also change how many nodes and components
            there are, and how many nodes split. (How masses are divided depends on numbers only.)
    """

    size_logits: Tensor
    root_logits: Tensor
    root_row: Tensor

    def __init__(
        self,
        width: int,
        config: GraphTokenizerConfig,
        scales: Scales,
        sizes: Tensor,
        roots: tuple[Tensor, Tensor],
        conditioned: bool = False,
    ) -> None:
        super().__init__()
        self.vocabulary, self.scales, self.ascending = scales.vocabulary, scales, config.split_order == "number"
        self.node_state, self.edge_state = nn.Embedding(NODE_STATES, width), nn.Embedding(EDGE_STATES, width)
        # For each attribute of nodes and of edges, the name of the table that embeds it.
        self.tables: dict[str, list[str]] = {NODE: [], EDGE: []}
        for kind, (of, column, count) in scales.attributes.items():
            name = kind.replace(" ", "_") if kind in (NODE_TYPE, EDGE_TYPE) else f"{of}_attribute_{column}"
            self.tables[of].append(name)
            setattr(self, name, nn.Embedding(count + 1, width))
        for of, column, count in scales.attributes.values():
            setattr(self, f"score_{self.tables[of][column]}", _mlp(width, width, count))
        if config.masses:
            self.mass, self.span = (_mlp(MASSES, width, width) for _ in range(2))
            assert config.max_nodes is not None  # the tokenizer has filled it in
            self.division = Division(config.max_nodes)
        self.numbers = _mlp(NUMBERS, width, width)
        self.layers = nn.ModuleList(Layer(width, config.stem.pooled) for _ in range(config.stem.layers))
        self.norm_nodes, self.norm_edges = nn.LayerNorm(width), nn.LayerNorm(width)
        self.pool = nn.Linear(width, width)
        # From the transformer's hidden states to the states that are scored.
        self.ask_node, self.ask_edge = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.node_score = _mlp(width, width, 1)
        self.edge_score = _mlp(width, 2 * width, 3)
        self.count_score = _mlp(CANDIDATE, 32, 1)
        self.tilt_sizes = self.tilt_roots = self.tilt_counts = None
        if conditioned:
            self.tilt_sizes, self.tilt_roots = Tilt(width, sizes), Tilt(width, roots[0])
            self.tilt_counts = nn.Linear(width, CANDIDATE)
            nn.init.zeros_(self.tilt_counts.weight)
            nn.init.zeros_(self.tilt_counts.bias)
        self.register_buffer("size_logits", sizes, persistent=False)
        self.register_buffer("root_logits", roots[0], persistent=False)
        self.register_buffer("root_row", roots[1], persistent=False)

    def forward(self, inputs: ScaleInput, revealed: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Memory]:
        memory, number_states, structure = self._states(inputs, revealed)
        num_graphs = number_states.shape[0] * number_states.shape[1]
        for layer in self.layers:
            memory.nodes, memory.edges = layer(memory.nodes, memory.edges, *structure, num_graphs)
        memory.nodes, memory.edges = self.norm_nodes(memory.nodes), self.norm_edges(memory.edges)
        return self._tokens(memory, number_states), memory

    # Inputs.

    def _states(
        self, inputs: ScaleInput, revealed: tuple[Tensor, Tensor] | None
    ) -> tuple[Memory, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The initial states of nodes and edges; the embedded numbers, K B D; and, for the disjoint graph, its edges,
        its triangles, and which of the K B graphs each node belongs to."""
        nodes, edges, triangles, owners, blocked, begins = [], [], [], [], [], []
        token = node = edge = 0
        number_states = self.numbers(describe_numbers(torch.stack([part.numbers for part in inputs.structure])))
        parts = []
        for k, part in enumerate(inputs.structure):
            begins.append((token, node, edge))
            length, size = part.mask.shape[1], part.num_samples
            seen = None
            if revealed is not None:
                seen = (revealed[0][:, token : token + length], revealed[1][:, token : token + length])
                # Samples whose tokens are all revealed need no logits: most of a batch waits for its slowest sample.
                part = part.only((part.mask & ~seen[1]).any(1))
            parts.append(part)
            node_states, edge_states, node_types, edge_types = reveal(part, seen)
            if len(node_states):
                states = self._embed(NODE, self.node_state(node_states), node_types)
                if part.masses is not None:
                    states = states + self.mass(describe_masses(part.masses))
                nodes.append(states)
                states = self._embed(EDGE, self.edge_state(edge_states), edge_types)
                if part.spans is not None:
                    states = states + self.span(describe_masses(part.spans))
                edges.append(states)
                owners.append(part.graph_of + k * size)
                triangles.append(part.triangles + edge)
                blocked.append(
                    node_states >= CHOSEN if part.masses is None else (node_states >= CHOSEN) | (part.masses == 1)
                )
            token, node, edge = token + length, node + len(node_states), edge + len(edge_states)
        if not nodes:
            none = number_states.new_zeros(0, number_states.shape[-1])
            index = torch.zeros(2, 0, dtype=torch.long, device=none.device)
            memory = Memory(none, none, index[0].bool(), tuple(parts), begins)
            return memory, number_states, (index, index.new_zeros(3, 0), index[0])
        ends = torch.cat([p.edges + b[1] for p, b in zip(parts, begins, strict=True)], 1)
        of = torch.cat(owners)
        context = number_states.flatten(0, 1)
        memory = Memory(
            torch.cat(nodes) + context[of],
            torch.cat(edges) + context[of[ends[0]]],
            torch.cat(blocked),
            tuple(parts),
            begins,
        )
        return memory, number_states, (ends, torch.cat(triangles, 1), of)

    def _embed(self, of: str, states: Tensor, tokens: Tensor | None) -> Tensor:
        """N D: the states of nodes or edges with their attributes, N A, of which 0 is not drawn yet."""
        if tokens is None:
            return states
        for column, name in enumerate(self.tables[of]):
            states = states + getattr(self, name)(tokens[:, column])
        return states

    def _tokens(self, memory: Memory, number_states: Tensor) -> Tensor:
        """B L D. A token that chooses a node gets the mean over its graph; a token about edges gets the sum over the
        two children."""
        parts = []
        for k, (part, (_, node, edge)) in enumerate(zip(memory.structure, memory.begins, strict=True)):
            x_BLD = number_states[k][:, None].expand(-1, part.mask.shape[1], -1)
            if part.kind == NODE:
                own = memory.nodes[node : node + len(part.graph_of)]
                mean = scatter(own, part.graph_of, 0, part.num_samples, "mean")
                x_BLD = x_BLD + self.pool(mean)[:, None]
            elif (part.kind == EDGE or part.draws is not None) and len(part.places):
                of_nodes = part.draws is not None and part.draws[0] == NODE
                source, begin = (memory.nodes, node) if of_nodes else (memory.edges, edge)
                about = self.pool(source[begin + part.places].sum(1))
                x_BLD = x_BLD.index_put((*part.mask.nonzero(as_tuple=True),), about, accumulate=True)
            parts.append(x_BLD)
        return torch.cat(parts, 1)

    # Outputs.

    def logits(self, hidden_BLD: Tensor, memory: Memory) -> Tensor:
        return self.joined(self.logits_by_scale(hidden_BLD, memory))

    def logits_by_scale(self, hidden_BLD: Tensor, memory: Memory) -> list[Tensor]:
        out = []
        for part, (token, node, edge) in zip(memory.structure, memory.begins, strict=True):
            own = hidden_BLD[:, token : token + part.mask.shape[1]]
            out.append(self.padded(self.part_logits(part, own, memory, node, edge)))
        return out

    def joined(self, parts: list[Tensor]) -> Tensor:
        """B L V, from logits by scale."""
        return torch.cat([F.pad(part, (0, self.vocabulary - part.shape[-1]), value=OUTSIDE) for part in parts], 1)

    def padded(self, logits: Tensor) -> Tensor:
        """Logits of a scale, as wide as ``REGISTER`` asks for."""
        width = min(self.vocabulary, -(-logits.shape[-1] // REGISTER) * REGISTER)
        return F.pad(logits, (0, width - logits.shape[-1]), value=OUTSIDE)

    def build_refinement(self, width: int) -> GraphRefinement:
        if self.ascending:
            raise ConfigError(
                "transformer.refiner draws the nodes that split in the order of their tokens, and numbers of nodes "
                "mean nothing: set tokenizer.split_order=random"
            )
        return GraphRefinement(self, self.pool.out_features, width, self.scales)

    def part_logits(self, part: Structure, hidden_BLD: Tensor, memory: Memory, node: int, edge: int) -> Tensor:
        """B L V' of one scale, as wide as its tokens need; padding has all logits alike."""
        none = hidden_BLD.new_zeros(())
        if part.kind in HEADS:
            known, tilt = self.size_logits.expand(part.num_samples, -1), self.tilt_sizes
            if part.kind == ROOTS:
                row = self.root_row[part.numbers[:, 1].clamp_max(self.vocabulary - 1)]
                known, tilt = self.root_logits[row], self.tilt_roots
            if tilt is not None:
                known = known + tilt(hidden_BLD[:, 0])
            known = F.pad(known, (0, self.vocabulary - known.shape[-1]), value=NEVER)
            return known[:, None].to(none.dtype)
        if part.kind == COUNT:
            scores = self._count_logits(part.numbers, hidden_BLD[:, 0])
            return torch.where(part.mask[..., None], scores[:, None], none)
        if part.kind == NODE:
            asked = memory.nodes[node : node + len(part.graph_of)] + self.ask_node(hidden_BLD[:, 0])[part.graph_of]
            score = self.node_score(asked)[:, 0]
            score = score.masked_fill(memory.blocked[node : node + len(part.graph_of)], UNLIKELY)
            within = torch.arange(len(score), device=score.device) - part.offsets[part.graph_of]
            scores = none.new_full((part.num_samples, max(1, int(part.numbers[:, 0].max()))), OUTSIDE)
            scores = scores.index_put((part.graph_of, within), score.to(scores.dtype))
            return torch.where(part.mask[..., None], scores[:, None], none)
        if not len(part.places):
            return none.expand(*part.mask.shape, {EDGE: 3, MASS: 1}.get(part.kind, self.vocabulary))
        if part.kind == MASS:
            values = self.division(part)
        else:
            values = self._place_logits(part, hidden_BLD, memory, node, edge)
        logits = none.expand(*part.mask.shape, values.shape[1])
        return logits.index_put((*part.mask.nonzero(as_tuple=True),), values.to(none.dtype))

    def _place_logits(self, part: Structure, hidden_BLD: Tensor, memory: Memory, node: int, edge: int) -> Tensor:
        """R V': logits of tokens that are each about an edge or a node."""
        asked = self.ask_edge(hidden_BLD[part.mask])
        if part.draws is not None:
            of, column = part.draws
            about = memory.nodes[node + part.places[:, 0]] if of == NODE else memory.edges[edge + part.places[:, 0]]
            return getattr(self, f"score_{self.tables[of][column]}")(about + asked)
        # Three maps: for the child that the edge goes to, for the child that it leaves, and for edges that go to both.
        taken, left, both = self.edge_score(memory.edges[edge + part.places] + asked[:, None]).unbind(-1)
        scores = torch.empty_like(taken[:, :1]).expand(-1, 3).clone()
        scores[:, FIRST] = taken[:, 0] + left[:, 1]
        scores[:, SECOND] = taken[:, 1] + left[:, 0]
        scores[:, BOTH] = both.sum(1)
        return scores

    def _count_logits(self, numbers: Tensor, hidden_BD: Tensor) -> Tensor:
        """B V': logits of how many nodes split. Each number is scored by how it compares with the usual one."""
        size, target, usual = numbers.float()[:, :, None].unbind(1)
        most = torch.minimum(size, target - size)
        longest = max(1, int(most.max()))
        count = torch.arange(1, longest + 1, device=numbers.device).float().expand(len(numbers), -1)
        usual = usual.clamp_min(1)
        features = torch.stack(
            torch.broadcast_tensors(
                (count == usual).float(), (count - usual) / usual, (count > usual).float(), count / size.clamp_min(1),
                size / target.clamp_min(1), (count == most).float(), (usual + 1).log() / 5,
            ), -1,
        )  # fmt: skip
        scores = self.count_score(features)[..., 0].float()
        if self.tilt_counts is not None:
            scores = scores + (features * self.tilt_counts(hidden_BD)[:, None]).sum(-1)
        return F.pad(scores.masked_fill(count > most.clamp_min(1), OUTSIDE), (1, 0), value=OUTSIDE)


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))
