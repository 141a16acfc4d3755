"""The multiscale residual quantization of a latent grid (VAR, https://arxiv.org/abs/2404.02905, algorithms 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale import distributed
from nextscale.device import full_precision
from nextscale.grid.phi import Phi
from nextscale.grid.quantizer import VectorQuantizer
from nextscale.grid.resample import resample
from nextscale.tokens.pyramid import Schedule, TokenPyramid


@dataclass
class Quantized:
    """The result of quantization with gradients.

    Attributes:
        f_hat: B C *grid; passes gradients straight through to the features.
        pyramid: the tokens.
        loss: the mean over scales of the commitment and codebook losses.
        residuals: R C, the vectors that were quantized, of all scales.
        codes: R, the code that each of them was assigned.
        counts: K V, how often each scale used each code, over all processes.
    """

    f_hat: Tensor
    pyramid: TokenPyramid
    loss: Tensor
    residuals: Tensor
    codes: Tensor
    counts: Tensor


class ResidualPyramid(nn.Module):
    """Describes a grid of features as a sum of upsampled, convolved code grids, coarse to fine.

    Args:
        quantizer: the codebook shared by all scales.
        phi: convolutions after upsampling.
        upsample: ``cubic`` or ``linear``; downsampling is by area.
        commitment: beta, weight of the commitment loss.
    """

    def __init__(
        self,
        quantizer: VectorQuantizer,
        phi: Phi,
        upsample: Literal["cubic", "linear"] = "cubic",
        commitment: float = 0.25,
    ) -> None:
        super().__init__()
        self.quantizer, self.phi = quantizer, phi
        self.mode: Literal["cubic", "linear"] = upsample
        self.commitment = commitment

    def part(self, vectors_BLC: Tensor, k: int, schedule: Schedule) -> Tensor:
        """B C *finest: what the codes of scale k add to f_hat. In full precision, so that sums are always the same."""
        grid = vectors_BLC.mT.unflatten(-1, schedule.scales[k].shape)
        with full_precision(grid.device):
            return self.phi(resample(grid, schedule.scales[-1].shape, self.mode), k, len(schedule))

    def tokens(self, features: Tensor, schedule: Schedule) -> TokenPyramid:
        """Encode features B C *finest."""
        return self.tokens_after(features, schedule, lambda tokens, k: tokens)[0]

    def tokens_after(
        self, features: Tensor, schedule: Schedule, replaced: Callable[[Tensor, int], Tensor]
    ) -> tuple[TokenPyramid, TokenPyramid]:
        """Encode features B C *finest while tokens are replaced (``Requantizes.encode_after``): finer ones describe
        what those left over."""
        rest, chosen, absorbed = features, [], []
        for k, scale in enumerate(schedule.scales):
            vectors = resample(rest, scale.shape, "area").flatten(2).mT
            chosen.append(self.quantizer.nearest(vectors.flatten(0, 1)).view(vectors.shape[:2]))
            absorbed.append(replaced(chosen[k], k))
            rest = rest - self.part(self.quantizer.lookup(absorbed[k]), k, schedule)
        return TokenPyramid.pack(chosen, schedule), TokenPyramid.pack(absorbed, schedule)

    def f_hat(self, pyramid: TokenPyramid) -> Tensor:
        """B C *finest: the sum of the parts of all scales."""
        schedule = pyramid.schedule
        parts = (self.part(self.quantizer.lookup(pyramid.scale(k)), k, schedule) for k in range(len(schedule)))
        return torch.stack(list(parts)).sum(0)

    def quantize(
        self, features: Tensor, schedule: Schedule, kept_scales: Tensor | None = None, record: bool = True
    ) -> Quantized:
        """Encode with gradients, for stage 1.

        ``kept_scales`` (B integers in 1..K) is the number of scales to keep per sample; finer ones are dropped from
        f_hat and from the loss. ``record`` updates the usage statistics of the codes (in training mode); a caller that
        accumulates batches updates them itself.
        """
        quantizer = self.quantizer
        target = features.detach()
        rest, f_hat = target, torch.zeros_like(features)
        tokens, codes, residuals, loss = [], [], [], features.new_zeros(())
        counts = torch.zeros(len(schedule), quantizer.num_codes, device=features.device)
        for k, scale in enumerate(schedule.scales):
            vectors = resample(rest, scale.shape, "area").flatten(2).mT
            flat = vectors.flatten(0, 1)
            drawn = quantizer.nearest(flat)
            counts[k] = torch.bincount(drawn, minlength=quantizer.num_codes)
            part = self.part(quantizer.lookup(drawn).view(vectors.shape), k, schedule)
            if kept_scales is not None:
                part = part * (k < kept_scales).view(-1, *[1] * (part.dim() - 1)).to(part.dtype)
            f_hat = f_hat + part
            rest = rest - part.detach()
            tokens.append(drawn.view(vectors.shape[:2]))
            residuals.append(flat)
            codes.append(drawn)
            loss = loss + self._loss(f_hat, features, kept_scales, k)
        distributed.total(counts)
        if self.training and record:
            quantizer.record(counts)
        straight = features + (f_hat - features).detach()
        pyramid = TokenPyramid.pack(tokens, schedule)
        return Quantized(straight, pyramid, loss / len(schedule), torch.cat(residuals), torch.cat(codes), counts)

    def _loss(self, f_hat: Tensor, features: Tensor, kept_scales: Tensor | None, k: int) -> Tensor:
        """Commitment (moves the encoder) and codebook (moves codes and phi) losses after scale k.

        With an EMA codebook the second term still trains phi.
        """
        if kept_scales is None:
            commitment = F.mse_loss(features, f_hat.detach())
            return self.commitment * commitment + F.mse_loss(f_hat, features.detach())
        kept = (k < kept_scales).view(-1, *[1] * (f_hat.dim() - 1)).to(f_hat.dtype)
        per_sample = self.commitment * (features - f_hat.detach()).square()
        per_sample = per_sample + (f_hat - features.detach()).square()
        return (per_sample * kept).mean()
