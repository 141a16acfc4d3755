"""The stage-1 loss on video: the core's losses, with image losses applied per frame, and a loss on motion."""

from __future__ import annotations

from torch import Tensor

from nextscale.plugin import TokenizerObjective, fold
from nextscale_video.config import VideoTokenizerConfig


class VideoObjective(TokenizerObjective):
    """The core's objective plus a temporal difference loss. Discriminator and perceptual loss see single frames."""

    config: VideoTokenizerConfig

    def views(self, samples: Tensor) -> Tensor:
        """(B T) C H W: every frame."""
        return fold(samples)

    def reconstruction(self, reconstruction: Tensor, samples: Tensor) -> dict[str, Tensor]:
        scalars = super().reconstruction(reconstruction, samples)
        if self.config.temporal > 0 and samples.shape[2] > 1:
            error = (reconstruction - samples).diff(dim=2)  # the error of differences is the difference of errors
            scalars["temporal"] = error.square().mean()
            scalars["reconstruction"] = scalars["reconstruction"] + self.config.temporal * scalars["temporal"]
        return scalars
