"""Graph statistics of the SPECTRE / DiGress protocol. Each gives one histogram per graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import networkx as nx
import numpy as np

Histograms = list[np.ndarray]

ORBITS = 15
SPECTRUM_RANGE = (-1e-5, 2.0)
WAVELET_SCALES, WAVELET_BOUND = 12, 1.4


def degree(graphs: Sequence[nx.Graph]) -> Histograms:
    """How many nodes have each degree."""
    return [np.array(nx.degree_histogram(graph), float) for graph in graphs]


def clustering(graphs: Sequence[nx.Graph]) -> Histograms:
    """100 bins of the local clustering coefficient."""
    found = []
    for graph in graphs:
        values = list(nx.clustering(graph).values())  # type: ignore[union-attr]
        found.append(np.histogram(values, bins=100, range=(0.0, 1.0))[0].astype(float))
    return found


def orbits(graphs: Sequence[nx.Graph]) -> Histograms:
    """Mean number of times that a node lies in each of the 15 orbits of graphlets of up to 4 nodes (ORCA)."""
    import orbit_count

    found = []
    for graph in graphs:
        if not graph.number_of_edges():  # nothing to count, and orbit_count does not accept it
            found.append(np.zeros(ORBITS))
            continue
        plain = nx.convert_node_labels_to_integers(graph)
        counts = np.asarray(orbit_count.node_orbit_counts(plain, graphlet_size=4), float)
        found.append(counts.sum(0) / len(graph))
    return found


def spectrum(graphs: Sequence[nx.Graph]) -> Histograms:
    """200 bins of the eigenvalues of the normalised Laplacian."""
    found = []
    for graph in graphs:
        values = np.linalg.eigvalsh(nx.normalized_laplacian_matrix(graph).toarray())
        counts = np.histogram(values, bins=200, range=SPECTRUM_RANGE, density=False)[0]
        found.append(counts / max(counts.sum(), 1))
    return found


def wavelet(graphs: Sequence[nx.Graph]) -> Histograms:
    """Energies of 12 Abspline filters (pygsp) on the normalised Laplacian's spectrum, binned: 12 x 100, flat."""
    from pygsp.filters import Abspline

    # A filter bank reads only its graph's largest eigenvalue. Here it is the upper bound, the same for every graph.
    bank = Abspline(SimpleNamespace(lmax=2.0), WAVELET_SCALES)
    found = []
    for graph in graphs:
        values, vectors = np.linalg.eigh(nx.normalized_laplacian_matrix(graph).toarray())
        responses = bank.evaluate(np.abs(values))
        energies = np.square(responses) @ np.square(vectors).T
        counts = np.stack([np.histogram(row, bins=100, range=(0, WAVELET_BOUND))[0] for row in energies])
        found.append(counts.flatten() / max(counts.sum(), 1))
    return found


STATISTICS: dict[str, tuple[Callable[[Sequence[nx.Graph]], Histograms], float, bool]] = {
    "degree": (degree, 1.0, True),
    "clustering": (clustering, 0.1, True),
    "orbit": (orbits, 30.0, False),
    "spectrum": (spectrum, 1.0, True),
    "wavelet": (wavelet, 1.0, True),
}
"""Per name: the statistic, sigma of the kernel, and whether histograms are normalised to sum to one."""


def mmd_tv(one: Histograms, other: Histograms, sigma: float, normalized: bool) -> float:
    """Squared maximum mean discrepancy with the kernel exp(-TV(x, y)^2 / (2 sigma^2)), where TV is half the L1 distance
    (https://arxiv.org/abs/2204.01613; biased estimate, as published)."""
    width = max(len(row) for row in (*one, *other))
    rows = np.zeros((len(one) + len(other), width))
    for row, histogram in zip(rows, (*one, *other), strict=True):
        row[: len(histogram)] = histogram / (histogram.sum() + 1e-6) if normalized else histogram
    return _mmd(rows, len(one), lambda x, y: np.abs(x - y).sum(-1) / 2, sigma)


def _mmd(rows: np.ndarray, split: int, distance: Callable[[np.ndarray, np.ndarray], np.ndarray], sigma: float) -> float:
    """Squared MMD of the first ``split`` rows against the others, with a Gaussian kernel on their distance."""

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        apart = np.stack([distance(row, b) for row in a])
        return float(np.exp(-np.square(apart) / (2 * sigma**2)).mean())

    a, b = rows[:split], rows[split:]
    return mean(a, a) + mean(b, b) - 2 * mean(a, b)


def mmd_emd(one: Histograms, other: Histograms, sigma: float, scaling: float) -> float:
    """Squared MMD with the kernel exp(-EMD^2 / (2 sigma^2)), where EMD is the earth mover's distance of histograms
    whose neighbouring bins are 1 / scaling apart (GraphRNN, https://arxiv.org/abs/1802.08773, as GDSS evaluates)."""
    width = max(len(row) for row in (*one, *other))
    rows = np.zeros((len(one) + len(other), width))
    for row, histogram in zip(rows, (*one, *other), strict=True):
        row[: len(histogram)] = histogram / (histogram.sum() + 1e-6)
    # On a line, the mass to move across a border is the difference of the masses before it.
    return _mmd(rows.cumsum(1), len(one), lambda x, y: np.abs(x - y).sum(-1) / scaling, sigma)


def mmd_gaussian(one: Histograms, other: Histograms, sigma: float) -> float:
    """Squared MMD with the Gaussian kernel on vectors."""
    return _mmd(np.stack([*one, *other]), len(one), lambda x, y: np.sqrt(np.square(x - y).sum(-1)), sigma)


def histograms(graphs: Sequence[nx.Graph]) -> dict[str, Histograms]:
    """Every statistic. Those of the spectrum take time with the cube of a graph's size: seconds for 2,000 nodes."""
    return {name: statistic(graphs) for name, (statistic, _, _) in STATISTICS.items()}


def gdss_distances(found: Mapping[str, Histograms], reference: Mapping[str, Histograms]) -> dict[str, float]:
    """Degree, clustering and orbits as GDSS (https://arxiv.org/abs/2202.02514) compares them. Do not mix them with
    ``distances``: the kernels differ."""
    return {
        "degree": mmd_emd(found["degree"], reference["degree"], 1.0, 1.0),
        "clustering": mmd_emd(found["clustering"], reference["clustering"], 0.1, 100.0),
        "orbit": mmd_gaussian(found["orbit"], reference["orbit"], 30.0),
    }


def distances(found: Mapping[str, Histograms], reference: Mapping[str, Histograms]) -> dict[str, float]:
    """The squared MMD of every statistic, from the ``histograms`` of two sets of graphs."""
    return {
        name: mmd_tv(found[name], reference[name], sigma, normalized)
        for name, (_, sigma, normalized) in STATISTICS.items()
    }
