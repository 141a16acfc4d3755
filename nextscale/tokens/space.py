"""Token spaces: a token is one of V codes, or d independent bits. A token space defines the loss, and how to draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

Generators = torch.Generator | Sequence[torch.Generator] | None
"""One generator for the batch (as in the reference code), one per sample, or None for torch's default generator."""

TIE = 1e-4
"""Numbers this close together count as equal, because they may differ by rounding alone. Symmetric choices have equal
logits, and truncation must keep the same ones no matter how many samples are computed at once."""

LOGITS_AT_ONCE, LOGITS_AT_ONCE_ON_CPU = 2**26, 2**20
"""Logits that are truncated at once. Sorting takes several times their memory, and CPUs are faster on small pieces."""


class TokenSpace(ABC):
    """The set of values that a token can take. The transformer's head describes a token by ``num_logits`` numbers; the
    token is stored as integers below ``vocabulary`` of shape ``token_shape``."""

    vocabulary: int
    num_logits: int
    token_shape: tuple[int, ...] = ()

    @abstractmethod
    def loss(self, logits: Tensor, tokens: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """B L: negative log-likelihood of each token, in nats."""

    @abstractmethod
    def accuracy(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """B L: 1 where the likeliest token is the correct one (for bits: the share of correct bits)."""

    def judge(self, parts: Sequence[Tensor], tokens: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """The loss and the accuracy of each token, both B L, from logits in parts along L."""
        pieces = tokens.split([part.shape[1] for part in parts], 1)
        pairs = list(zip(parts, pieces, strict=True))
        loss = torch.cat([self.loss(part, piece, label_smoothing) for part, piece in pairs], 1)
        return loss, torch.cat([self.accuracy(part.detach(), piece) for part, piece in pairs], 1)

    @abstractmethod
    def draw(
        self,
        logits: Tensor,
        generator: Generators = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Tensor:
        """B L *token_shape: tokens drawn from the (filtered) distribution that ``logits`` describe."""

    @abstractmethod
    def embedding(self, width: int) -> nn.Module:
        """A module from tokens B L *token_shape to B L width, for tokens already revealed within a scale."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """A JSON-able description. Equal descriptions mean the same space."""


def draw_rows(probs: Tensor, generator: Generators) -> Tensor:
    """B L: one category per row of ``probs`` B L V.

    The category with the shortest of exponential waiting times at these rates (the Gumbel-max trick). So draws
    ``torch.multinomial`` too, with the same numbers, but it draws with one generator only, and waits for the device to
    check ``probs``.
    """
    noise = torch.empty_like(probs, memory_format=torch.contiguous_format)
    if generator is None or isinstance(generator, torch.Generator):
        noise.exponential_(generator=generator)
    else:
        for row, one in zip(noise.unbind(), generator, strict=True):
            row.exponential_(generator=one)
    return torch.div(probs.detach(), noise, out=noise).argmax(-1)


def uniform(shape: Sequence[int], generator: Generators, device: torch.device) -> Tensor:
    """Uniform numbers with first axis B, from one generator for the batch or one per sample."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(tuple(shape), generator=generator, device=device)
    return torch.stack([torch.rand(tuple(shape[1:]), generator=g, device=device) for g in generator])


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Set all but the ``top_k`` likeliest, then all outside the smallest set of probability ``top_p``, to -inf.

    The likeliest token always stays, and so does any token that would stay if a logit or a probability changed by
    ``TIE``. Nucleus sampling: https://arxiv.org/abs/1904.09751.
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least - TIE, -torch.inf)
    if top_p < 1:
        ascending = logits.sort(dim=-1).values
        outside = ascending.softmax(-1).cumsum(-1) <= 1 - top_p - TIE
        outside[..., -1] = False
        least = ascending.masked_fill(outside, torch.inf).amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < least - TIE, -torch.inf)
    return logits


class _CrossEntropy(Function):
    """``F.cross_entropy`` of logits ... V, one loss per token. On CPUs torch's own backward is three times as slow."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, smoothing: float) -> Tensor:
        log_probs, index = F.log_softmax(logits, -1), tokens[..., None]
        ctx.save_for_backward(log_probs, index)
        ctx.smoothing = smoothing
        loss = (smoothing - 1) * log_probs.gather(-1, index)[..., 0]
        return loss - smoothing * log_probs.mean(-1) if smoothing else loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        log_probs, index = ctx.saved_tensors
        each = grads[0][..., None]
        grad = log_probs.exp().mul_(each).scatter_add_(-1, index, (ctx.smoothing - 1) * each)
        if ctx.smoothing:
            grad -= each * (ctx.smoothing / log_probs.shape[-1])
        return grad, None, None


class Codes(TokenSpace):
    """A token is one of ``num_codes`` codes."""

    def __init__(self, num_codes: int) -> None:
        self.vocabulary = self.num_logits = num_codes

    def loss(self, logits: Tensor, tokens: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return _CrossEntropy.apply(logits, tokens, label_smoothing)  # type: ignore[return-value]

    def accuracy(self, logits: Tensor, tokens: Tensor) -> Tensor:
        right = logits.gather(-1, tokens[..., None])[..., 0]
        return (right == logits.amax(-1)).float()  # several times faster on CPUs than argmax

    def draw(
        self,
        logits: Tensor,
        generator: Generators = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Tensor:
        at_once = LOGITS_AT_ONCE_ON_CPU if logits.device.type == "cpu" else LOGITS_AT_ONCE
        some, absent = max(1, at_once // max(1, logits[0].numel())), self.vocabulary - logits.shape[-1]

        def probabilities(part: Tensor) -> Tensor:
            part = part if temperature == 1 else part / temperature
            probs = filter_logits(part, top_k, top_p).softmax(-1)
            # A draw uses a random number per code, also for those that logits by scale leave out.
            return F.pad(probs, (0, absent)) if absent else probs

        parts = logits.split(some)
        if generator is None or isinstance(generator, torch.Generator):
            return draw_rows(torch.cat([probabilities(part) for part in parts]), generator)
        drawn = []
        for i, part in enumerate(parts):
            own = generator[i * some : (i + 1) * some if i < len(parts) - 1 else None]
            drawn.append(draw_rows(probabilities(part), own))
        return torch.cat(drawn)

    def embedding(self, width: int) -> nn.Module:
        return nn.Embedding(self.vocabulary, width)

    def describe(self) -> dict[str, Any]:
        return {"kind": "codes", "codes": self.vocabulary}


class Bits(TokenSpace):
    """A token is d independent bits (Infinity, https://arxiv.org/abs/2412.04431): 2^d codes for d logits."""

    vocabulary = 2

    def __init__(self, num_bits: int) -> None:
        self.num_logits = num_bits
        self.token_shape = (num_bits,)

    def loss(self, logits: Tensor, tokens: Tensor, label_smoothing: float = 0.0) -> Tensor:
        target = tokens.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)

    def accuracy(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return ((logits > 0) == tokens.bool()).float().mean(-1)

    def draw(
        self,
        logits: Tensor,
        generator: Generators = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Tensor:
        """``top_k`` = 1 takes the likelier value of every bit. ``top_p`` takes it for those bits whose likelier value
        has at least this probability."""
        probs = (logits / temperature).sigmoid()
        drawn = uniform(probs.shape, generator, probs.device) < probs
        likelier = probs > 0.5
        certain = torch.maximum(probs, 1 - probs) >= top_p
        if top_k == 1:
            certain = torch.ones_like(certain)
        elif top_p >= 1:
            certain = torch.zeros_like(certain)
        return torch.where(certain, likelier, drawn).long()

    def embedding(self, width: int) -> nn.Module:
        return _BitEmbedding(self.num_logits, width)

    def describe(self) -> dict[str, Any]:
        return {"kind": "bits", "bits": self.num_logits}


class _BitEmbedding(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(2 * input.to(self.weight.dtype) - 1)
