"""Sample quality by the SPECTRE / DiGress protocol; for molecules, validity, uniqueness and novelty."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from nextscale.plugin import DataSplits, MultiscaleTokenizer
from nextscale_graph.codes import AttributeCodes
from nextscale_graph.graphs import GraphBatch
from nextscale_graph.source import GraphSource
from nextscale_graph.statistics import distances, gdss_distances, histograms
from nextscale_graph.validity import VALID, unique_and_novel

MOST = 256
"""Largest number of graphs of a split that statistics are computed on."""
PACKED = 8
"""Graphs per batch when padding is counted. Batches are formed by length, as in training."""
REAL_PARTS = 3
"""How many sets of training graphs, each as large as the set of samples, are compared with the reference."""
FLOOR_DIGITS = 4
"""Decimals to which floors are rounded before ratios are computed. A floor that rounds to zero, as for orbits and
clustering of trees, has no ratio. The published ratios are computed in this way
(https://github.com/manuelmlmadeira/DeFoG)."""


def evaluate_samples(samples: GraphBatch, data: DataSplits) -> dict[str, Any]:
    """Distances to the test split, and shares of valid, unique and novel samples.

    ``mmd_NAME`` compares samples with the test split, and ``floor_NAME`` compares the training split with it.
    ``ratio_NAME`` is the first over the second, and ``ratio`` the mean ratio; floors that round to zero are left out
    (``FLOOR_DIGITS``). ``real_ratio`` is the mean ratio of sets of training graphs that are as large as the set of
    samples: small sets have large ratios. ``valid``, ``unique`` and ``novel`` are shares, and ``vun`` is the share that
    is all three. If there is no test of validity, ``unique_novel`` replaces ``vun``, and ``gdss_NAME`` and its floor
    are added. Attributes are compared by ``attribute_distances``. Two graphs that differ in attributes alone count as
    the same.
    """
    kind = data.description["kind"]
    if kind == "molecule":
        return evaluate_molecules(samples, data)
    train, test = (_first(source) for source in (data.train, data.held_out))
    graphs = samples.to_networkx()
    results: dict[str, Any] = {}
    drawn, reference, real = (histograms(each) for each in (graphs, test.to_networkx(), train.to_networkx()))
    ours, floor = distances(drawn, reference), distances(real, reference)
    for name, value in ours.items():
        results[f"mmd_{name}"], results[f"floor_{name}"] = value, floor[name]
    ratios = _ratios(ours, floor)
    results |= {f"ratio_{name}": ratio for name, ratio in ratios.items()}
    if ratios:
        results["ratio"] = _mean(ratios)
        starts = range(0, len(train) - len(graphs) + 1, len(graphs))[:REAL_PARTS]
        parts = [{name: each[i : i + len(graphs)] for name, each in real.items()} for i in starts]
        found = [_mean(_ratios(distances(part, reference), floor)) for part in parts]
        results |= {"real_ratio": float(np.mean(found))} if found else {}
    if kind == "none":  # published figures of community, ego and protein graphs follow another protocol
        floor = gdss_distances(real, reference)
        for name, value in gdss_distances(drawn, reference).items():
            results[f"gdss_{name}"], results[f"gdss_floor_{name}"] = value, floor[name]
    unique, novel = unique_and_novel(graphs, cast(GraphSource, data.train).all().to_networkx())
    good = np.array([VALID[kind](graph) for graph in graphs]) if kind in VALID else np.ones(len(graphs), bool)
    if kind in VALID:
        results["valid"] = float(good.mean())
    results |= {"unique": float(unique.mean()), "novel": float(novel.mean())}
    results["vun" if kind in VALID else "unique_novel"] = float((good & unique & novel).mean())
    results |= attribute_distances(samples, train, test, AttributeCodes.of(data.description))
    results["mean_nodes"] = float(samples.sizes.float().mean())
    results["mean_degree"] = float(2 * samples.edge_counts.sum() / samples.sizes.sum())
    return results


def _ratios(found: dict[str, float], floor: dict[str, float]) -> dict[str, float]:
    rounded = {name: round(value, FLOOR_DIGITS) for name, value in floor.items()}
    return {name: value / rounded[name] for name, value in found.items() if rounded[name] > 0}


def _mean(ratios: dict[str, float]) -> float:
    return float(np.mean(list(ratios.values())))


def _first(source: Any) -> GraphBatch:
    return source.batch(np.arange(min(MOST, len(source))), None).samples


def evaluate_molecules(samples: GraphBatch, data: DataSplits) -> dict[str, Any]:
    """Shares: of samples, those that RDKit accepts without correction; of valid samples, those that are unique; of
    unique samples, those that are not training molecules."""
    from nextscale_graph.readers.smiles import to_smiles

    nodes, edges = data.description["node_types"], data.description["edge_types"]

    def smiles_of(graph: GraphBatch) -> str | None:
        return to_smiles(graph, graph.node_names or nodes, graph.edge_names or edges)

    found = [smiles_of(samples[[i]]) for i in range(len(samples))]
    valid = [smiles for smiles in found if smiles is not None]
    unique = set(valid)
    train = cast(GraphSource, data.train)
    known = {smiles_of(graph) for graph in train.graphs}
    return {
        "valid": len(valid) / max(1, len(found)),
        "unique": len(unique) / max(1, len(valid)),
        "novel": len(unique - known) / max(1, len(unique)),
        "connected": float(np.mean([smiles is not None and "." not in smiles for smiles in found])),
    }


@torch.inference_mode()
def evaluate_tokenizer(tokenizer: MultiscaleTokenizer, data: DataSplits) -> dict[str, Any]:
    """The share of held-out graphs that are decoded exactly, up to the order of nodes and to the bins of numbers; the
    number of tokens per graph; and the share of tokens that are padding, in batches of ``PACKED``."""
    from nextscale_graph.tokenizer import GraphTokenizer

    assert isinstance(tokenizer, GraphTokenizer)
    source = cast(GraphSource, data.held_out)
    samples = _first(source).to(tokenizer.device)
    pyramid, orders = tokenizer.encode_ordered(samples)
    decoded = tokenizer.decode(tokenizer.states(pyramid)[-1])
    same = [_same(samples[[i]], decoded[[i]], order, tokenizer.codes) for i, order in enumerate(orders)]
    counted = pyramid.tokens.numel() if pyramid.mask is None else int(pyramid.mask.sum())
    by_length = samples[np.argsort(source.lengths[: len(samples)], kind="stable").tolist()]
    starts = range(0, len(samples), PACKED)
    spent = sum(tokenizer.encode(by_length[i : i + PACKED]).tokens.numel() for i in starts)
    return {"lossless": float(np.mean(same)), "tokens_a_graph": counted / len(samples), "padding": 1 - counted / spent}


def _same(graph: GraphBatch, decoded: GraphBatch, order: np.ndarray, codes: AttributeCodes) -> bool:
    """Whether ``decoded`` is ``graph`` with its nodes in that order. Numbers are the same if they are in one bin."""
    size = int(graph.sizes[0])
    ends = np.sort(order[decoded.edges.cpu().numpy()], 0)
    sort = np.argsort(ends[0] * size + ends[1])
    if int(decoded.sizes[0]) != size or not np.array_equal(ends[:, sort], graph.edges.cpu().numpy()):
        return False
    (nodes, edges), (other_nodes, other_edges) = codes.encode(graph), codes.encode(decoded)
    same = [np.array_equal(one[order], other) for one, other in zip(nodes, other_nodes, strict=True)]
    same += [np.array_equal(one, other[sort]) for one, other in zip(edges, other_edges, strict=True)]
    return all(same)


def attribute_distances(
    samples: GraphBatch, train: GraphBatch, test: GraphBatch, codes: AttributeCodes
) -> dict[str, float]:
    """For each attribute, the total variation distance between the distributions of its tokens (types, categories,
    bins) in samples and in the test split; and its floor, the training split's distance. 0 is equal, 1 is disjoint."""
    found = {}
    lengths = [*codes.lengths[0].items()], [*codes.lengths[1].items()]
    encoded = [codes.encode(graphs) for graphs in (samples, train, test)]
    for side, of in enumerate(("node", "edge")):
        for i, (name, count) in enumerate(lengths[side]):
            counts = [np.bincount(sides[side][i], minlength=count) for sides in encoded]
            ours, floor, real = (each / max(1, each.sum()) for each in counts)
            found[f"tv_{of}_{name}"] = float(np.abs(ours - real).sum() / 2)
            found[f"floor_tv_{of}_{name}"] = float(np.abs(floor - real).sum() / 2)
    return found
