"""The multiscale residual quantization of a latent grid (VAR, https://arxiv.org/abs/2404.02905, algorithms 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale import distributed
from nextscale.device import full_precision
from nextscale.grid.phi import Phi
from nextscale.grid.prior import ScalePrior
from nextscale.grid.quantizer import VectorQuantizer, occurrences
from nextscale.grid.resample import resample
from nextscale.tokens.pyramid import Scale, Schedule, TokenPyramid


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
        nats: B, what the tokens of a sample cost under the prior, with gradients to the prior; None without one.
        spread_K: K, the mean squared distance between vectors and the nearest codes; None without a prior.
    """

    f_hat: Tensor
    pyramid: TokenPyramid
    loss: Tensor
    residuals: Tensor
    codes: Tensor
    counts: Tensor
    nats: Tensor | None = None
    spread_K: Tensor | None = None


class ResidualPyramid(nn.Module):
    """Describes a grid of features by upsampled, convolved code grids, coarse to fine.

    The description f_hat is their sum. With ``target: features``, it is the latest of them alone: every scale describes
    the features anew, and its tokens do not depend on those of other scales (FlexVAR,
    https://arxiv.org/abs/2502.20313).

    Args:
        quantizer: the codebook shared by all scales.
        phi: convolutions after upsampling.
        upsample: ``cubic`` or ``linear``; downsampling is by area.
        commitment: beta, weight of the commitment loss; or one weight per scale.
        target: what a scale quantizes, ``residual`` (what f_hat lacks so far) or ``features``.
        prior: makes quantization entropy-constrained; None takes the nearest code.
    """

    def __init__(
        self,
        quantizer: VectorQuantizer,
        phi: Phi,
        upsample: Literal["cubic", "linear"] = "cubic",
        commitment: float | Sequence[float] = 0.25,
        target: Literal["residual", "features"] = "residual",
        prior: ScalePrior | None = None,
    ) -> None:
        super().__init__()
        self.quantizer, self.phi, self.prior = quantizer, phi, prior
        self.mode: Literal["cubic", "linear"] = upsample
        self.commitment = commitment
        self.adds = target == "residual"

    def part(self, vectors_BLC: Tensor, k: int, schedule: Schedule) -> Tensor:
        """B C *finest: the codes of scale k, upsampled. In full precision, so that sums are always the same."""
        grid = vectors_BLC.mT.unflatten(-1, schedule.scales[k].shape)
        with full_precision(grid.device):
            return self.phi(resample(grid, schedule.scales[-1].shape, self.mode), k, len(schedule))

    def after(self, f_hat: Tensor, part: Tensor) -> Tensor:
        """f_hat after a scale that is described by ``part``."""
        return f_hat + part if self.adds else part

    def tokens(self, features: Tensor, schedule: Schedule) -> TokenPyramid:
        """Encode features B C *finest."""
        return self.tokens_after(features, schedule, lambda tokens, k: tokens)[0]

    def tokens_after(
        self, features: Tensor, schedule: Schedule, replaced: Callable[[Tensor, int], Tensor]
    ) -> tuple[TokenPyramid, TokenPyramid]:
        """Encode features B C *finest while tokens are replaced (``Requantizes.encode_after``): finer ones describe
        what those left over. Tokens that a scale does not use are mapped to tokens that it does."""
        rest, chosen, absorbed, f_hat = features, [], [], torch.zeros_like(features)
        for k, scale in enumerate(schedule.scales):
            vectors = resample(rest, scale.shape, "area").flatten(2).mT
            chosen.append(self._assign(vectors, f_hat, scale, k)[0])
            absorbed.append(replaced(chosen[k], k) % self.quantizer.size(k))
            if self.adds or self.prior is not None:
                part = self.part(self.quantizer.lookup(absorbed[k]), k, schedule)
                rest = rest - part if self.adds else rest
                f_hat = self.after(f_hat, part)
        return TokenPyramid.pack(chosen, schedule), TokenPyramid.pack(absorbed, schedule)

    def _assign(self, vectors_BLC: Tensor, f_hat: Tensor, scale: Scale, k: int) -> tuple[Tensor, Tensor | None]:
        """B L_k: the tokens of scale k after ``f_hat``; and what each costs under the prior, if there is one."""
        flat, shape = vectors_BLC.flatten(0, 1), vectors_BLC.shape[:2]
        if self.prior is None:
            return self.quantizer.nearest(flat, k).view(shape), None
        known = resample(f_hat.detach(), scale.shape, "area")
        nats_BLV = self.prior(known, k, self.quantizer.size(k))
        tokens = self.quantizer.nearest(flat, k, self.prior.price_K[k] * nats_BLV.detach().flatten(0, 1)).view(shape)
        return tokens, nats_BLV.gather(-1, tokens[..., None])[..., 0]

    def f_hat(self, pyramid: TokenPyramid) -> Tensor:
        """B C *finest: what all scales together describe."""
        schedule = pyramid.schedule
        parts = [self.part(self.quantizer.lookup(pyramid.scale(k)), k, schedule) for k in range(len(schedule))]
        return torch.stack(parts).sum(0) if self.adds else parts[-1]

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
        nats, spreads = features.new_zeros(len(features)), []
        for k, scale in enumerate(schedule.scales):
            vectors = resample(rest, scale.shape, "area").flatten(2).mT
            chosen, own = self._assign(vectors, f_hat, scale, k)
            flat, drawn = vectors.flatten(0, 1), chosen.flatten()
            if own is not None:
                nats = nats + (own if kept_scales is None else own * (k < kept_scales)[:, None]).sum(1)
                spreads.append(quantizer.spread(flat, k))
            counts[k] = occurrences(drawn, quantizer.num_codes)
            part = self.part(quantizer.lookup(drawn).view(vectors.shape), k, schedule)
            kept = None if kept_scales is None else (k < kept_scales).view(-1, *[1] * (part.dim() - 1))
            if self.adds:
                part = part if kept is None else part * kept.to(part.dtype)
                f_hat, rest = f_hat + part, rest - part.detach()
            else:
                f_hat = part if kept is None else torch.where(kept, part, f_hat)
            tokens.append(chosen)
            residuals.append(flat)
            codes.append(drawn)
            loss = loss + self._loss(f_hat, features, kept, scale, k)
        if self.training:
            distributed.total(counts)
        if self.training and record:
            quantizer.record(counts)
        straight = features + (f_hat - features).detach()
        pyramid = TokenPyramid.pack(tokens, schedule)
        priced = {} if self.prior is None else {"nats": nats, "spread_K": torch.stack(spreads)}
        return Quantized(
            straight, pyramid, loss / len(schedule), torch.cat(residuals), torch.cat(codes), counts, **priced
        )

    def _loss(self, f_hat: Tensor, features: Tensor, kept: Tensor | None, scale: Scale, k: int) -> Tensor:
        """Commitment (moves the encoder) and codebook (moves codes and phi) losses after a scale.

        With an EMA codebook the second term still trains phi. Where every scale describes the features anew, they
        commit to a coarse scale on its own grid, or it would blur them.
        """
        commitment = self.commitment[k] if isinstance(self.commitment, Sequence) else self.commitment
        coarse, fine = f_hat.detach(), features
        if not self.adds:
            coarse, fine = (resample(grid, scale.shape, "area") for grid in (coarse, fine))
        if kept is None:
            return commitment * F.mse_loss(fine, coarse) + F.mse_loss(f_hat, features.detach())
        weight = kept.to(f_hat.dtype)
        codebook = ((f_hat - features.detach()).square() * weight).mean()
        return commitment * ((fine - coarse).square() * weight).mean() + codebook
