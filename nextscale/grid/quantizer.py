"""Vector quantization with one codebook shared by all scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale import distributed


class VectorQuantizer(nn.Module):
    """Nearest-code quantization (VQ-VAE, https://arxiv.org/abs/1711.00937).

    Args:
        num_codes: V; or one number per scale: a scale uses so many of the first codes, and V is the largest number.
        dim: C, length of a code.
        distance: ``euclidean``, or ``cosine`` (codes are compared by direction, but looked up unnormalised).
        update: ``gradient`` (the codebook is a parameter, moved by a codebook loss) or ``ema`` (moving averages of
            the vectors assigned to each code, https://arxiv.org/abs/1906.00446).
        num_scales: K, for the usage statistics.
    """

    codebook: Tensor
    usage_KV: Tensor
    ema_count: Tensor
    ema_sum: Tensor

    def __init__(
        self,
        num_codes: int | Sequence[int],
        dim: int,
        distance: Literal["euclidean", "cosine"] = "euclidean",
        update: Literal["gradient", "ema"] = "gradient",
        ema_decay: float = 0.99,
        num_scales: int = 1,
    ) -> None:
        super().__init__()
        self.sizes = None if isinstance(num_codes, int) else tuple(num_codes)
        num_codes = num_codes if isinstance(num_codes, int) else max(num_codes)
        self.num_codes, self.dim = num_codes, dim
        self.distance, self.update, self.ema_decay = distance, update, ema_decay
        codebook = torch.empty(num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes)
        if update == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("ema_count", torch.zeros(num_codes))
            self.register_buffer("ema_sum", torch.zeros(num_codes, dim))
        self.register_buffer("usage_KV", torch.zeros(num_scales, num_codes))

    @torch.no_grad()
    def nearest(self, vectors: Tensor, k: int | None = None, costs: Tensor | None = None) -> Tensor:
        """R integers: the code nearest to each of ``vectors`` (R C), of those that scale ``k`` uses (None: of all).

        ``costs`` (R V_k) are added to the squared distances; with ``cosine``, those of directions.
        """
        codes = self.codebook if k is None else self.codebook[: self.size(k)]
        if self.distance == "cosine":
            likeness = F.normalize(vectors, dim=-1) @ F.normalize(codes, dim=-1).T
            return (likeness if costs is None else likeness - costs / 2).argmax(-1)
        # |v - c|^2 without |v|^2, which does not change the order.
        distance = torch.addmm(codes.square().sum(-1), vectors, codes.T, alpha=-2)
        return (distance if costs is None else distance + costs).argmin(-1)

    @torch.no_grad()
    def spread(self, vectors: Tensor, k: int) -> Tensor:
        """The mean squared distance between ``vectors`` (R C) and the nearest codes of scale k, as in ``nearest``."""
        codes = self.lookup(self.nearest(vectors, k))
        if self.distance == "cosine":
            vectors, codes = F.normalize(vectors, dim=-1), F.normalize(codes, dim=-1)
        return (vectors - codes).square().sum(-1).mean()

    def size(self, k: int) -> int:
        """How many codes scale k uses."""
        return self.num_codes if self.sizes is None else self.sizes[k]

    def legal(self, k: int) -> Tensor | None:
        """V booleans: the codes that scale k uses; None if it uses all."""
        if self.size(k) == self.num_codes:
            return None
        return torch.arange(self.num_codes, device=self.codebook.device) < self.size(k)

    def lookup(self, tokens: Tensor) -> Tensor:
        """Codes of ``tokens``: *shape C."""
        return F.embedding(tokens, self.codebook)

    @torch.no_grad()
    def record(self, counts_KV: Tensor, decay: float = 0.99) -> None:
        """Update how often each scale uses each code; ``counts_KV`` are this batch's counts over all processes."""
        share = counts_KV / counts_KV.sum(-1, keepdim=True).clamp_min(1)
        first = self.usage_KV.sum() == 0
        self.usage_KV.copy_(torch.where(first, share, self.usage_KV.lerp(share, 1 - decay)))

    @torch.no_grad()
    def update_codebook(self, vectors: Tensor, tokens: Tensor) -> None:
        """One step of the moving averages: ``vectors`` R C were assigned to ``tokens`` R."""
        count = occurrences(tokens, self.num_codes).to(vectors)
        total = torch.zeros_like(self.ema_sum).index_add_(0, tokens, vectors)
        for part in (count, total):
            distributed.total(part)
        self.ema_count.lerp_(count, 1 - self.ema_decay)
        self.ema_sum.lerp_(total, 1 - self.ema_decay)
        known = self.ema_count > 1e-3  # a code that was never used keeps its vector
        self.codebook.copy_(
            torch.where(known[:, None], self.ema_sum / self.ema_count.clamp_min(1e-3)[:, None], self.codebook)
        )

    @torch.no_grad()
    def revive(self, vectors: Tensor, below: float, generator: torch.Generator) -> int:
        """Move every code whose share of uses is below ``below`` / V onto one of ``vectors`` (R C). Returns how many.

        ``vectors`` must be the same on every process, or the codebooks would drift apart.
        """
        share = self._share()
        dead = (share < below / self.num_codes).nonzero()[:, 0]
        number = min(len(dead), len(vectors))
        if number == 0:
            return 0
        # The least used come first, in case there are too few vectors.
        dead = dead[share[dead].argsort()][:number]
        picked = torch.randperm(len(vectors), generator=generator)[:number].to(vectors.device)
        self.codebook[dead] = vectors[picked].to(self.codebook.dtype)
        self.usage_KV[:, dead] = 1 / self.num_codes  # a fair trial before it can be called dead again
        if self.update == "ema":
            self.ema_count[dead] = 1.0
            self.ema_sum[dead] = self.codebook[dead]
        return number

    def _share(self) -> Tensor:
        """V: the share of uses of each code, in the scales that use it, as if each of them used V codes."""
        if self.sizes is None:
            return self.usage_KV.mean(0)
        sizes = torch.tensor(self.sizes, device=self.usage_KV.device)[:, None]
        may_use = torch.arange(self.num_codes, device=sizes.device) < sizes
        return (self.usage_KV * (sizes / self.num_codes)).sum(0) / may_use.sum(0)


def occurrences(tokens: Tensor, num_codes: int) -> Tensor:
    """V integers: how often each code is among ``tokens`` (R). ``torch.bincount`` waits for a GPU."""
    return torch.zeros(num_codes, dtype=torch.long, device=tokens.device).scatter_add_(
        0, tokens, torch.ones_like(tokens)
    )
