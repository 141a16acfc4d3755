"""Whether a sample is valid, unique and novel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import networkx as nx
import numpy as np

ROUNDS = 4
"""How far nodes are told apart before graphs are compared."""


def is_planar(graph: nx.Graph) -> bool:
    return len(graph) > 0 and nx.is_connected(graph) and nx.check_planarity(graph)[0]


def is_tree(graph: nx.Graph) -> bool:
    return len(graph) > 0 and nx.is_tree(graph)


def is_block_model(graph: nx.Graph, within: float = 0.3, between: float = 0.005, level: float = 0.9) -> bool:
    """A substitute for the published test, which needs graph-tool: Louvain finds 2 to 5 communities of 20 to 40 nodes,
    and a Wald test does not reject an edge probability of .3 within them and .005 between them."""
    if len(graph) == 0 or not nx.is_connected(graph):
        return False
    communities = nx.community.louvain_communities(graph, seed=0)
    sizes = np.array([len(one) for one in communities])
    if not 2 <= len(sizes) <= 5 or sizes.min() < 20 or sizes.max() > 40:
        return False
    member = {node: i for i, one in enumerate(communities) for node in one}
    inside = np.zeros(len(sizes))
    across = 0
    for a, b in graph.edges:
        if member[a] == member[b]:
            inside[member[a]] += 1
        else:
            across += 1
    pairs = sizes * (sizes - 1) / 2
    other = (sizes.sum() ** 2 - np.square(sizes).sum()) / 2
    scores = [_score(count, total, within) for count, total in zip(inside, pairs, strict=True)]
    scores.append(_score(across, other, between))
    return bool(np.mean(scores) > level)


def _score(count: float, total: float, chance: float) -> float:
    """The p-value of a Wald test that pairs are joined with probability ``chance``, given ``count`` joined pairs of
    ``total``."""
    from scipy.stats import chi2

    found = count / total
    wald = (found - chance) ** 2 / (found * (1 - found) + 1e-6)
    return float(1 - chi2.cdf(abs(wald), 1))


VALID: dict[str, Callable[[nx.Graph], bool]] = {"planar": is_planar, "tree": is_tree, "sbm": is_block_model}


def classes(graphs: Sequence[nx.Graph]) -> list[int]:
    """One number per graph, equal for isomorphic graphs: the position of the first such graph.

    Nodes that look different may not be matched. Without this, grids of 500 nodes take hours.
    """
    buckets: dict[tuple, list[tuple[int, nx.Graph]]] = {}
    found = []
    for i, graph in enumerate(graphs):
        colours = _colours(graph)
        coloured = nx.Graph(graph.edges)
        coloured.add_nodes_from((node, {"colour": colour}) for node, colour in colours.items())
        bucket = buckets.setdefault(tuple(sorted(colours.values())), [])
        match = next((j for j, other in bucket if _isomorphic(other, coloured)), None)
        if match is None:
            bucket.append((i, coloured))
        found.append(i if match is None else match)
    return found


def _isomorphic(one: nx.Graph, other: nx.Graph) -> bool:
    """Of graphs with the same colours. Those without nodes are isomorphic, but not for networkx."""
    return not len(one) or nx.vf2pp_is_isomorphic(one, other, node_label="colour")


def _colours(graph: nx.Graph) -> dict[Any, int]:
    """A number per node, from its surroundings up to ``ROUNDS`` edges away (Weisfeiler and Leman 1968). Isomorphisms
    preserve it."""
    colours = dict(graph.degree)
    for _ in range(ROUNDS):
        colours = {node: hash((colours[node], *sorted(colours[other] for other in graph[node]))) for node in graph}
    return colours


def unique_and_novel(graphs: Sequence[nx.Graph], training: Sequence[nx.Graph]) -> tuple[np.ndarray, np.ndarray]:
    """Two boolean arrays: unique, not isomorphic to an earlier graph; and novel, not isomorphic to any training
    graph."""
    every = classes([*training, *graphs])[len(training) :]
    own = np.array(every)
    novel = own >= len(training)
    unique = np.zeros(len(graphs), bool)
    unique[np.unique(own, return_index=True)[1]] = True
    return unique, novel
