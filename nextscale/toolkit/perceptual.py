"""A perceptual loss on real pretrained features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.toolkit.efficientnet import load_efficientnet_lite0

SMALLEST_SIDE = 64
"""Smaller images are first enlarged to this. Below it, the network's deeper maps have a single place."""


class PerceptualLoss(nn.Module):
    """Distance between the EfficientNet-Lite0 features of two images, in the manner of LPIPS.

    At every place of every stage, the channel vectors are scaled to unit length; the squared difference of the two
    images' vectors is averaged over places, then over stages. This is the uncalibrated variant of Zhang et al. 2018
    (https://arxiv.org/abs/1801.03924), because LPIPS's learned channel weights exist for other networks only. The
    network is frozen and in no state dict; gradients flow through it to the images.

    Raises:
        NextscaleError: the weights are not installed (extra ``perceptual``).
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = load_efficientnet_lite0()

    def forward(self, x_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """The mean over the batch, a scalar in [0, 4]. Images are in [-1, 1], with one or three channels."""
        distances = [
            (F.normalize(x, dim=1, eps=1e-6) - F.normalize(target, dim=1, eps=1e-6)).square().sum(1).mean()
            for x, target in zip(self._features(x_BCHW), self._features(target_BCHW), strict=True)
        ]
        total = distances[0]
        for distance in distances[1:]:
            total = total + distance
        return total / len(distances)

    def _features(self, x_BCHW: Tensor) -> list[Tensor]:
        height, width = x_BCHW.shape[-2:]
        if min(height, width) < SMALLEST_SIDE:
            factor = SMALLEST_SIDE / min(height, width)
            size = (round(height * factor), round(width * factor))
            x_BCHW = F.interpolate(x_BCHW, size, mode="bilinear", align_corners=False)
        return self.network.features(x_BCHW)
