"""The graph tokenizer: a lossless description of graphs by expansions. It has no weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from nextscale.plugin import (
    Codes,
    Completes,
    ConfigError,
    DataError,
    MeetsRequirements,
    MultiscaleTokenizer,
    NextscaleError,
    NextscaleWarning,
    ScaleInput,
    Schedule,
    TokenPyramid,
)
from nextscale_graph.coarsen import strategy
from nextscale_graph.codes import AttributeCodes
from nextscale_graph.config import GraphTokenizerConfig
from nextscale_graph.describe import describe_attributes, describe_graph, pack
from nextscale_graph.frequencies import root_logits, size_logits
from nextscale_graph.graphs import GraphBatch
from nextscale_graph.growth import advance, begin, begin_with
from nextscale_graph.scales import Scales
from nextscale_graph.state import GrowthState, graphs_of
from nextscale_graph.stem import GraphStem
from nextscale_graph.structure import (
    COUNT,
    EDGE,
    HEADS,
    MASS,
    NODE,
    Structure,
    of_graph,
    of_split,
    without_graph,
)  # fmt: skip

GROWING = {"planar": lambda graph: nx.check_planarity(graph)[0], "forest": nx.is_forest}
"""Properties that every stage of a growing graph must have if the final graph is to have them."""


MOST_NODES = 256
"""The largest number of nodes if the settings give none and the data need no more."""
HEAVY = 10
"""A token that divides a mass m has loss weight max(1, m / HEAVY), because most depends on the first divisions."""


@lru_cache(maxsize=65536)
def usual_count(size: int, target: int, ratio: float) -> int:
    """How many of ``size`` nodes split on the way to ``target`` if every level contracts its full share."""
    if size >= target:
        return 0
    fine = target
    while (coarse := fine - math.ceil(fine * ratio)) > size:
        fine = coarse
    return fine - size


class GraphTokenizer(MultiscaleTokenizer, Completes, MeetsRequirements):
    """Describes graphs by the levels of their growth.

    Scale 0 is the number of nodes, scale 1 the number of components. Every level then has three scales: how many nodes
    split; which ones (tokens that point at nodes, drawn one at a time); and where their edges go (``coarsen``). With
    ``config.masses`` there is one more, before the edges: how many nodes of the final graph each first child stands
    for. Attributes of nodes, then of edges, follow once a graph is complete, one scale each. Each sees those before it.

    Args:
        config: the tokenizer section.
        description: of the data (``source.describe``). It holds the counts ``sizes`` and ``components``, the names of
            the types ``node_types`` and ``edge_types``, the codes of other attributes, and the properties.
    """

    adaptive = True
    feature_dim = 1
    group_order = "random"
    requirements = tuple(GROWING)

    def __init__(self, config: GraphTokenizerConfig, description: Mapping[str, Any]) -> None:
        super().__init__()
        self.config, self.coarsening = config, strategy(config.coarsening)
        self.sizes: list[list[int]] = description["sizes"]
        self.components: list[list[int]] = description["components"]
        self.mean_degree = float(description["mean_degree"])
        self.node_types, self.edge_types = description["node_types"], description["edge_types"]
        self.largest: int = description["largest"]
        self.max_nodes = config.max_nodes or max(MOST_NODES, self.largest)
        if self.largest > self.max_nodes:
            raise ConfigError(
                f"tokenizer.max_nodes {self.max_nodes} is less than the {self.largest} nodes of the largest graph: "
                f"set tokenizer.max_nodes={self.largest}, or null for as many as the data need"
            )
        self.codes = AttributeCodes.of(description)
        node_codes, edge_codes = self.codes.lengths
        self.vocabulary = max(self.max_nodes + 1, 3, *node_codes.values(), *edge_codes.values())
        self.scales = Scales(self.vocabulary, self.max_nodes, config.masses, node_codes, edge_codes)
        self.token_space = Codes(self.vocabulary)

    def build_stem(self, width: int) -> GraphStem:
        return GraphStem(
            width,
            self.config.model_copy(update={"max_nodes": self.max_nodes}),
            self.scales,
            size_logits(self.sizes, self.vocabulary),
            root_logits(self.components, self.vocabulary),
            bool(self.codes.properties),
        )

    def scale_names(self, num_scales: int) -> list[str]:
        return [self.scales.kind(k) for k in range(num_scales)]

    def schedule(self) -> Schedule:
        """The schedule of a graph of mean size; every batch has its own."""
        total = sum(count for _, count in self.sizes)
        mean = max(1, round(sum(size * count for size, count in self.sizes) / total))
        lengths, size = [1] * len(HEADS), 1
        while size < mean:
            count = min(size, usual_count(size, mean, self.config.ratio))
            degrees = max(1, round(count * min(self.mean_degree, size - 1)))
            lengths += [1, count, *[count] * self.config.masses, degrees]
            size += count
        return Schedule.of([(length,) for length in lengths])

    # Graphs to tokens.

    def encode(self, samples: GraphBatch) -> TokenPyramid:
        return self.encode_ordered(samples)[0]

    def encode_ordered(self, samples: GraphBatch) -> tuple[TokenPyramid, list[np.ndarray]]:
        """The pyramid, and each graph's node order in decoding: node i of the decoded graph is node ``order[i]`` of the
        sample.

        Raises:
            DataError: a graph has no nodes, or more than ``tokenizer.max_nodes``, or lacks an attribute.
        """
        described, orders = [], []
        start = 0
        seeds = torch.zeros(len(samples), dtype=torch.long) if samples.seeds is None else samples.seeds.cpu()
        for i, (size, count) in enumerate(zip(samples.sizes.tolist(), samples.edge_counts.tolist(), strict=True)):
            if not 1 <= size <= self.max_nodes:
                raise DataError(f"a graph has {size} nodes: it should have 1 to {self.max_nodes}")
            edges = samples.edges[:, start : start + count].cpu().numpy()
            start += count
            rng = np.random.default_rng(int(seeds[i]))
            shuffle = self.config.split_order == "random"
            tokens, order = describe_graph(size, edges, self.scales, self.coarsening, self.config.ratio, rng, shuffle)
            described.append(tokens)
            orders.append(order)
        if self.scales.typed:
            describe_attributes(samples, *self.codes.encode(samples), described, orders, self.scales)
        return pack(described, samples.sizes.device), orders

    # The state machine.

    def initial_state(
        self,
        num_samples: int,
        conditions: Mapping[str, Tensor] | None = None,
        schedule: Schedule | None = None,
    ) -> GrowthState:
        """Graphs of one node. Their target size is the condition ``size`` if given, otherwise it is drawn."""
        given = (conditions or {}).get("size")
        if given is not None and int(given.max()) > self.max_nodes:
            raise NextscaleError(f"size {int(given.max())} is more than tokenizer.max_nodes {self.max_nodes}")
        if given is not None and int(given.max()) > self.largest:
            warnings.warn(
                f"size {int(given.max())} is beyond the data, which has at most {self.largest} nodes: trying anyway",
                NextscaleWarning,
                stacklevel=2,
            )
        properties = self.codes.requested(conditions or {})
        return begin(num_samples, self.scales, given, self.device, properties)

    def begin_with(self, samples: GraphBatch, conditions: Mapping[str, Tensor] | None = None) -> GrowthState:
        """Graphs to be completed to the condition ``size``. The given nodes, and the edges among them, are kept.

        Raises:
            NextscaleError: there is no size, or it leaves nothing to add; or the model has types, which are drawn last
                and cannot be kept; or it draws masses, and it is unknown how much of the whole each given node becomes.
        """
        target = (conditions or {}).get("size")
        if target is None:
            raise NextscaleError("completing a graph needs size=N, its number of nodes when complete")
        if self.scales.typed:
            raise NextscaleError("graphs with attributes cannot be completed, because attributes are drawn last")
        if self.config.masses:
            raise NextscaleError("a model with tokenizer.masses=true cannot complete graphs: train one without masses")
        if bool((samples.sizes >= target.to(samples.sizes)).any()):
            raise NextscaleError(f"size {int(target.min())} leaves nothing to add to {int(samples.sizes.max())} nodes")
        return begin_with(samples, target, self.initial_state(len(samples), conditions))

    def num_scales(self, state: GrowthState) -> int:
        within = state.scale < len(HEADS) or (state.scale - len(HEADS)) % len(self.scales.cycle)
        return state.scale + bool(within or bool((state.growing | ~state.typed).any()))

    def scale_input(self, state: GrowthState, k: int) -> ScaleInput:
        kind, device = self.scales.kind(state.scale), self.device
        mask = self.scales.mask(state, kind)
        structure = self._structure(state, kind, mask)
        length = mask.shape[1]
        weight = torch.full(mask.shape, self.config.node_weight if kind == NODE else 1.0, device=device)
        if kind == MASS and state.masses is not None:
            weight[mask] = (state.masses[state.splits] / HEAVY).clamp_min(1)
        return ScaleInput(
            num_samples=len(mask),
            features=None,
            coordinates=torch.zeros(length, 1, device=device),
            scale_ids=torch.full((length,), k, device=device),
            known_scales={k: length},
            mask=mask,
            legal=self.scales.legal(state, kind, mask),
            start=length,
            structure=(structure,),
            groups=self.scales.groups(state, kind, mask),
            weight=weight,
        )

    def _structure(self, state: GrowthState, kind: str, mask: Tensor) -> Structure:
        active = mask.any(1)
        if kind in HEADS:
            return without_graph(kind, state, mask, state.counts)
        if kind == COUNT:
            pairs = zip(state.sizes.tolist(), state.target.tolist(), strict=True)
            usual = torch.tensor([usual_count(*pair, self.config.ratio) for pair in pairs], device=mask.device)
            return without_graph(kind, state, mask, torch.minimum(usual, self.scales.divisible(state).sum(1)))
        if kind == MASS:
            assert state.masses is not None
            divided = state.masses[state.splits][:, None]
            return without_graph(kind, state, mask, state.counts, divided)
        if kind == EDGE:
            return of_split(state, mask, active)
        if kind == NODE:
            return of_graph(kind, state, mask, active)
        draws = self.scales.attributes[kind][:2]
        if not bool(active.any()):  # every level has these scales, but most levels complete no graph
            return without_graph(kind, state, mask, state.counts)
        return of_graph(kind, state, mask, active, draws)

    def update(self, state: GrowthState, k: int, tokens: Tensor) -> GrowthState:
        return advance(state, self.scales, tokens)

    def satisfies(self, requirement: str, state: GrowthState) -> Tensor:
        """Whether each graph still has the property. Only whole graphs are checked, after scales that say where edges
        go."""
        if state.scale <= len(HEADS) or self.scales.kind(state.scale - 1) != EDGE:
            return torch.ones_like(state.sizes, dtype=torch.bool)
        graphs = graphs_of(state).to_networkx()
        return torch.tensor([GROWING[requirement](graph) for graph in graphs], device=self.device)

    def decode(self, state: GrowthState) -> GraphBatch:
        return self.codes.decode(graphs_of(state), state.node_types, state.edge_types, state.graph_values)
