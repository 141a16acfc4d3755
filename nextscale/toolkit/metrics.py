"""Metrics of reconstructions and of sets of samples, as pure functions of tensors.

Samples are B C H W in [-1, 1]; features are N D. ``evaluate`` chooses the network that computes the features and the
real samples to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from nextscale.grid.measures import decibels


def psnr(x_BCHW: Tensor, target_BCHW: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of B C *grid: computed per sample (at most 100), then averaged."""
    difference = x_BCHW.float().clamp(-1, 1) - target_BCHW.float().clamp(-1, 1)
    return float(decibels(difference.square().flatten(1).mean(1)).mean())


def psnr_where(one: Tensor, other: Tensor, where: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over the places ``where`` (B *grid booleans) of B C *grid."""
    return float(decibels((one - other).square().movedim(1, -1)[where].mean()))


def ssim(x_BCHW: Tensor, target_BCHW: Tensor) -> float:
    """Structural similarity (https://doi.org/10.1109/TIP.2003.819861), the mean over samples.

    Uses the paper's Gaussian window (standard deviation 1.5, 11 x 11) where it fits. Smaller samples get a uniform
    window: 7 x 7, or the largest odd size that fits. Equal samples of a single row or column give 1.
    """
    side = min(x_BCHW.shape[-2:])
    x_BCHW, target_BCHW = _unit(x_BCHW), _unit(target_BCHW)
    if side >= 11:
        value = structural_similarity_index_measure(x_BCHW, target_BCHW, data_range=1.0)
    else:
        window = min(7, side - 1 + side % 2)
        value = structural_similarity_index_measure(
            x_BCHW, target_BCHW, data_range=1.0, gaussian_kernel=False, kernel_size=window
        )
    assert isinstance(value, Tensor)
    return float(value)


def _unit(x_BCHW: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]; values that a decoder overshoots are clipped, as they are in a file."""
    return (x_BCHW.float().clamp(-1, 1) + 1) / 2


def frechet_distance(a_ND: Tensor, b_ND: Tensor) -> float:
    """Fréchet distance of the Gaussians with the two sets' means and covariances (https://arxiv.org/abs/1706.08500).

    |mean difference|^2 + tr A + tr B - 2 tr (A B)^(1/2). With A = R^T R and B = S^T S from QR decompositions of the
    centred features, the last trace is the sum of the singular values of R S^T. This avoids the square root of a
    covariance, which is singular if a set has fewer members than features. Computed in float64.
    """
    check_features(a_ND, b_ND, 2)
    a_ND, b_ND = a_ND.double(), b_ND.double()
    a_mean, b_mean = a_ND.mean(0), b_ND.mean(0)
    a_root = torch.linalg.qr((a_ND - a_mean) / math.sqrt(len(a_ND) - 1), mode="r").R
    b_root = torch.linalg.qr((b_ND - b_mean) / math.sqrt(len(b_ND) - 1), mode="r").R
    cross = torch.linalg.svdvals(a_root @ b_root.T).sum()
    distance = (a_mean - b_mean).square().sum() + a_root.square().sum() + b_root.square().sum() - 2 * cross
    return max(0.0, float(distance))  # rounding can leave -1e-15


def kernel_distance(a_ND: Tensor, b_ND: Tensor, subsets: int = 0, subset_size: int = 1000, seed: int = 0) -> float:
    """Kernel distance (KID, https://arxiv.org/abs/1801.01401): unbiased squared MMD, kernel (x.y / D + 1)^3.

    Its expectation is 0 if both sets come from one distribution, so values slightly below 0 are right. All members are
    compared; with ``subsets``, the result is the mean over that many pairs of random subsets, as published. Computed in
    float64.
    """
    check_features(a_ND, b_ND, 2)
    a_ND, b_ND = a_ND.double(), b_ND.double()
    if not subsets:
        return _squared_mmd(a_ND, b_ND)
    generator = torch.Generator().manual_seed(seed)
    size = min(subset_size, len(a_ND), len(b_ND))
    values = [
        _squared_mmd(*(x[torch.randperm(len(x), generator=generator)[:size].to(x.device)] for x in (a_ND, b_ND)))
        for _ in range(subsets)
    ]
    return float(np.mean(values))


def _squared_mmd(a_ND: Tensor, b_ND: Tensor) -> float:
    n, m = len(a_ND), len(b_ND)
    within_a = (_kernel_sum(a_ND, a_ND) - _kernel(a_ND.square().sum(1), a_ND.shape[1]).sum()) / (n * (n - 1))
    within_b = (_kernel_sum(b_ND, b_ND) - _kernel(b_ND.square().sum(1), b_ND.shape[1]).sum()) / (m * (m - 1))
    return float(within_a + within_b - 2 * _kernel_sum(a_ND, b_ND) / (n * m))


def _kernel_sum(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    return torch.stack([_kernel(rows @ b_ND.T, a_ND.shape[1]).sum() for rows in a_ND.split(2048)]).sum()


def _kernel(products: Tensor, dimension: int) -> Tensor:
    return (products / dimension + 1) ** 3


def nearest_distances(x_N: Tensor, reference_M: Tensor, chunk: int = 4096) -> Tensor:
    """N: the Euclidean distance of each x to its nearest neighbour in ``reference_M``, in float32.

    Both are flattened per sample. The nearest neighbour is found by matrix products. Its distance is then computed from
    the difference, so that a copy is at exactly 0 and cancellation leaves no error.
    """
    x_ND, reference_MD = x_N.flatten(1).float(), reference_M.flatten(1).float()
    best_N = torch.full((len(x_ND),), torch.inf, device=x_ND.device)
    index_N = torch.zeros(len(x_ND), dtype=torch.long, device=x_ND.device)
    for start in range(0, len(reference_MD), chunk):
        block_CD = reference_MD[start : start + chunk]
        # |x - r|^2 without |x|^2, which does not change which r is nearest.
        scores_NC = torch.addmm(block_CD.square().sum(1)[None], x_ND, block_CD.T, alpha=-2)
        value_N, where_N = scores_NC.min(1)
        closer_N = value_N < best_N
        best_N = torch.where(closer_N, value_N, best_N)
        index_N = torch.where(closer_N, where_N + start, index_N)
    return torch.cat(
        [
            (rows - reference_MD[index]).square().sum(1).sqrt()
            for rows, index in zip(x_ND.split(chunk), index_N.split(chunk), strict=True)
        ]
    )


def memorisation(samples: Tensor, train: Tensor, held_out: Tensor) -> dict[str, float]:
    """Are drawn samples nearer to training samples than new real ones are?

    The threshold is the 1st percentile of the held-out samples' distances to their nearest training sample (L2 over
    pixels). So about 1% of samples as new as the held-out ones are below it; a good model stays below 3%.

    Returns:
        ``memorisation``: share of the samples nearer than the threshold; ``memorisation_floor``: the same for the
        held-out samples; ``memorisation_threshold``: the threshold.
    """
    held_out_N = nearest_distances(held_out, train)
    threshold = torch.quantile(held_out_N.double(), 0.01)
    samples_N = nearest_distances(samples, train)
    return {
        "memorisation": float((samples_N.double() < threshold).double().mean()),
        "memorisation_floor": float((held_out_N.double() < threshold).double().mean()),
        "memorisation_threshold": float(threshold),
    }


def within_class_diversity(samples: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> float:
    """Mean pairwise L2 distance of samples within a class, divided by that of real samples; the mean over classes.

    1: as diverse as real samples; 0: a single distinct sample per class. Classes with fewer than two members in either
    set are left out; NaN if none remains.
    """
    ratios = []
    for label in sorted(set(labels.tolist()) & set(real_labels.tolist())):
        drawn, present = samples[labels == label], real[real_labels == label]
        if len(drawn) > 1 and len(present) > 1:
            reference = mean_pairwise_distance(present)
            if reference > 0:
                ratios.append(mean_pairwise_distance(drawn) / reference)
    return float(np.mean(ratios)) if ratios else math.nan


def mean_pairwise_distance(x_N: Tensor) -> float:
    """The mean L2 distance over all pairs of members (N is at least 2), in float64."""
    x_ND = x_N.flatten(1).double()
    total = sum(float(torch.cdist(rows, x_ND[start:]).triu(1).sum()) for start, rows in _blocks(x_ND, 1024))
    return total / (len(x_ND) * (len(x_ND) - 1) / 2)


def _blocks(x_ND: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(x_ND), size):
        yield start, x_ND[start : start + size]


def check_features(a_ND: Tensor, b_ND: Tensor, at_least: int) -> None:
    """Raises ValueError unless the features are N D and M D, with ``at_least`` members each."""
    if a_ND.ndim != 2 or b_ND.ndim != 2 or a_ND.shape[1] != b_ND.shape[1]:
        raise ValueError(f"features must be N D and M D, got {tuple(a_ND.shape)} and {tuple(b_ND.shape)}")
    if min(len(a_ND), len(b_ND)) < at_least:
        raise ValueError(f"a distance needs at least {at_least} samples per set, got {len(a_ND)} and {len(b_ND)}")
