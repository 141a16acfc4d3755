"""What the stem keeps of one pass over the graphs so far."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nextscale_graph.structure import Structure


@dataclass
class Memory:
    """What ``logits`` needs: all scales as one disjoint graph, its states, and where the tokens lie.

    Shapes: nodes N D, edges E D, blocked N. ``structure`` holds the scales in order; ``begins`` says where each begins:
    token (along L), node and edge.
    """

    nodes: Tensor
    edges: Tensor
    blocked: Tensor
    structure: tuple[Structure, ...]
    begins: list[tuple[int, int, int]]
