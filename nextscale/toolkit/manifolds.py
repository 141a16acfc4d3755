"""Fidelity and variety of sets of samples: k-nearest-neighbour precision and recall, and the Inception Score."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from nextscale.toolkit.metrics import check_features

NEIGHBOURS = 3
"""k of precision and recall, as published."""
SPLITS = 10
"""Parts over which the Inception Score is averaged, as published."""
ROWS = 1024


def precision_recall(samples_ND: Tensor, real_MD: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Improved precision and recall (https://arxiv.org/abs/1904.06991) of samples, from features of any network.

    The manifold of a set is the union of balls around its members, each out to the k-th nearest other member. Precision
    is the share of samples in the manifold of the real ones (are they realistic?), recall the share of real ones in the
    manifold of the samples (is anything missing?). Both depend on the sizes of the sets, so compare with the values of
    as many held-out real samples. Computed in float64.

    Raises:
        ValueError: a set has no k + 1 members, or the features do not match.
    """
    check_features(samples_ND, real_MD, k + 1)
    # Distances are differences of products. Around a common centre, these are small and their rounding errors too.
    centre_D = real_MD.double().mean(0)
    samples_ND, real_MD = samples_ND.double() - centre_D, real_MD.double() - centre_D
    rounding = 1e-12 * float(torch.cat([samples_ND, real_MD]).square().sum(1).max())
    return (
        _share_within(samples_ND, real_MD, _radii(real_MD, k) + rounding),
        _share_within(real_MD, samples_ND, _radii(samples_ND, k) + rounding),
    )


def compare_manifolds(space: str, samples_ND: Tensor, held_ND: Tensor, train_MD: Tensor) -> dict[str, float]:
    """``precision_SPACE`` and ``recall_SPACE`` (see ``precision_recall``) of samples against training samples, and the
    same of held-out samples under ``_floor``. Empty if a set has too few members for them (less than 4)."""
    if min(map(len, (samples_ND, held_ND, train_MD))) <= NEIGHBOURS:
        return {}
    found, floor = precision_recall(samples_ND, train_MD), precision_recall(held_ND, train_MD)
    results = {}
    for i, measure in enumerate(("precision", "recall")):
        results |= {f"{measure}_{space}": found[i], f"{measure}_{space}_floor": floor[i]}
    return results


def inception_score(probs_NC: Tensor, splits: int = SPLITS, seed: int = 0) -> tuple[float, float]:
    """Inception Score (https://arxiv.org/abs/1606.03498): the mean over ``splits`` parts of exp E KL(p(y|x) || p(y)),
    and its standard deviation over them.

    ``probs_NC`` are class probabilities of samples, which are shuffled with ``seed``. Published scores take 50,000
    samples and the softmax of the standard Inception's logits *without* the bias of its last layer, as the original
    code did. With few samples per part, the score is too low.

    Raises:
        ValueError: there are fewer samples than parts.
    """
    from torchmetrics.image.inception import InceptionScore

    if len(probs_NC) < splits:
        raise ValueError(f"an Inception Score over {splits} parts needs at least {splits} samples, got {len(probs_NC)}")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # a warning that it keeps what it is given
        torch.manual_seed(seed)
        metric = InceptionScore(feature=nn.Identity(), splits=splits)
        # It expects logits. A probability of 0 would make 0 x infinity.
        metric.update(probs_NC.double().cpu().clamp_min(1e-30).log())
        mean, deviation = metric.compute()
    parts = len(torch.empty(len(probs_NC), 0).chunk(splits))  # torch makes fewer parts where they would not be even
    return float(mean), float(deviation) * ((parts - 1) / parts) ** 0.5  # as published: not the unbiased estimate


def _radii(x_ND: Tensor, k: int) -> Tensor:
    """N: the squared distance of each member to its k-th nearest other member."""
    found = []
    for start in range(0, len(x_ND), ROWS):
        rows_BD = x_ND[start : start + ROWS]
        distances_BN = _squared_distances(rows_BD, x_ND)
        itself = torch.arange(len(rows_BD), device=x_ND.device)
        distances_BN[itself, itself + start] = torch.inf
        found.append(distances_BN.kthvalue(k, 1).values)
    return torch.cat(found)


def _share_within(x_ND: Tensor, centres_MD: Tensor, radii_M: Tensor) -> float:
    inside = [(_squared_distances(rows, centres_MD) <= radii_M).any(1) for rows in x_ND.split(ROWS)]
    return float(torch.cat(inside).double().mean())


def _squared_distances(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    products = torch.addmm(y_MD.square().sum(1)[None], x_ND, y_MD.T, alpha=-2)
    return (products + x_ND.square().sum(1, keepdim=True)).clamp_min(0)
