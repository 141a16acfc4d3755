"""The stem's inputs, from a structure: states of nodes and edges with the revealed tokens, and numbers as features."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale_graph.coarsen import FIRST, SECOND
from nextscale_graph.structure import (
    ABSENT,
    BLOCKED,
    CHOSEN,
    COUNT,
    EDGE,
    HEADS,
    MASS,
    NODE,
    PRESENT,
    Structure,
)  # fmt: skip

NUMBERS, MASSES = 6, 5
"""Number of features of a sample's numbers, and of a mass."""


def reveal(part: Structure, seen: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """States and attributes of nodes and edges, updated with the tokens that the scale has revealed."""
    node_states, edge_states, node_types, edge_types = (
        part.node_states, part.edge_states, part.node_types, part.edge_types,
    )  # fmt: skip
    if seen is None or part.kind in (*HEADS, COUNT, MASS):
        return node_states, edge_states, node_types, edge_types
    tokens, known = seen[0], seen[1] & part.mask
    if part.kind == NODE:
        chosen = (part.offsets[:, None] + tokens)[known]
        node_states = node_states.clone()
        picked = torch.zeros_like(node_states, dtype=torch.bool)
        picked[chosen] = True
        first, second = part.edges
        node_states[second[picked[first]]] = BLOCKED
        node_states[first[picked[second]]] = BLOCKED
        node_states[chosen] = CHOSEN
        return node_states, edge_states, node_types, edge_types
    values, places = tokens[known], part.places[known[part.mask]]
    if part.kind == EDGE:
        edge_states = edge_states.clone()
        edge_states[places[:, 0]] = torch.where(values == SECOND, ABSENT, PRESENT)
        edge_states[places[:, 1]] = torch.where(values == FIRST, ABSENT, PRESENT)
    elif part.draws is not None and node_types is not None and edge_types is not None:
        of, column = part.draws
        at = (places[:, 0], torch.full_like(values, column))
        if of == NODE:
            node_types = node_types.index_put(at, values + 1)
        else:
            edge_types = edge_types.index_put(at, values + 1)
    return node_states, edge_states, node_types, edge_types


def describe_numbers(numbers: Tensor) -> Tensor:
    """... 6 features of three numbers: nodes so far, target, and nodes to split."""
    size, target, count = numbers.float().unbind(-1)
    logs = [(value.clamp_min(0) + 1).log() / 5 for value in (size, target, count, target - size)]
    return torch.stack([*logs, size / target.clamp_min(1), (size == target).float()], -1)


def describe_masses(masses: Tensor) -> Tensor:
    """N 5 features of masses of nodes, or of spans of edges."""
    mass = masses.float()
    small = [(mass == number).float() for number in range(3)]
    return torch.stack([*small, (mass + 1).log() / 3, mass / 30], -1)
