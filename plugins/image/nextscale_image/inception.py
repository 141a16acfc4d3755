"""The standard Inception, from a file: features for FID, and class probabilities for the Inception Score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nextscale.plugin import NextscaleError

UNBIASED, FEATURES = "no_output_bias", "return_features"
"""Arguments of the file's forward: leave out the bias of the last layer; return features instead of probabilities."""
BATCH = 64


class Inception:
    """A TorchScript network that takes uint8 images B 3 H W and resizes them itself.

    The file is that of the published metrics: the translation of TensorFlow's inception-2015-12-05 in stylegan2-ada's
    metrics (``.pt``; that of stylegan3 is the same network as a pickle, which is never read here). Called with
    ``return_features=True`` it returns features B 2048 for FID, with ``no_output_bias=True`` class probabilities B 1008
    from logits without bias, which the original Inception Score took. Other networks may return features alone.

    Raises:
        NextscaleError: the file is not TorchScript, or what it returns is not as above.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        try:
            self.network = torch.jit.load(path, map_location=device).eval()
        except Exception as error:  # missing, truncated or not TorchScript: torch raises several types
            raise NextscaleError(f"cannot read Inception from {path}: a TorchScript file is expected") from error
        self.classifies = {UNBIASED, FEATURES} <= {each.name for each in self.network.forward.schema.arguments}

    def features(self, images: Tensor) -> Tensor:
        """N 2048 on the CPU, from N C H W in [-1, 1]."""
        return in_batches(self._features, self.device, BATCH)(images)

    def probabilities(self, images: Tensor) -> Tensor:
        """N classes on the CPU, from N C H W in [-1, 1]; needs ``classifies``."""
        return in_batches(self._probabilities, self.device, BATCH)(images)

    def _features(self, x_BCHW: Tensor) -> Tensor:
        pixels = _pixels(x_BCHW)
        try:
            features = self.network(pixels, **{FEATURES: True})
        except (RuntimeError, TypeError):  # a network that always returns features
            features = self.network(pixels)
        if not isinstance(features, Tensor) or features.shape != (len(pixels), 2048):
            raise NextscaleError(f"Inception from {self.path} must return features B 2048 for uint8 images B 3 H W")
        return features

    def _probabilities(self, x_BCHW: Tensor) -> Tensor:
        probs = self.network(_pixels(x_BCHW), **{UNBIASED: True, FEATURES: False})
        if not isinstance(probs, Tensor) or probs.dim() != 2 or len(probs) != len(x_BCHW) or not _are_probs(probs):
            raise NextscaleError(f"Inception from {self.path} must return class probabilities with {UNBIASED}=True")
        return probs


def in_batches(function: Callable[[Tensor], Tensor], device: torch.device, size: int) -> Callable[[Tensor], Tensor]:
    """``function`` of ``size`` images at a time on the device; results on the CPU, in float32."""

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return torch.cat([function(x_BCHW.to(device)).float().cpu() for x_BCHW in images.split(size)])

    return run


def _pixels(x_BCHW: Tensor) -> Tensor:
    return ((x_BCHW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)


def _are_probs(probs_BC: Tensor) -> bool:
    sums_B = probs_BC.float().sum(1)
    return bool((probs_BC >= 0).all()) and torch.allclose(sums_B, torch.ones_like(sums_B), atol=1e-2)
