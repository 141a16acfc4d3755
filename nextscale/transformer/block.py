"""The transformer block: attention and MLP, each modulated by the condition (adaLN)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nextscale.config.sections import TransformerConfig
from nextscale.transformer.attention import Attention, AttentionMask, KVCache
from nextscale.transformer.functions import add_gated, gelu_tanh, modulate


def normalize(x: Tensor, kind: str) -> Tensor:
    """LayerNorm or RMSNorm without weights, because adaLN brings its own scale and shift."""
    if kind == "rmsnorm":
        return F.rms_norm(x, x.shape[-1:], eps=1e-6)
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class MLP(nn.Module):
    """An MLP with GELU (tanh), or with SwiGLU and as many weights (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, hidden = config.model_width, round(config.model_width * config.mlp_ratio)
        self.gated = config.mlp == "swiglu"
        if self.gated:
            hidden = -(-2 * hidden // 3 // 8) * 8
        self.fc1 = nn.Linear(width, 2 * hidden if self.gated else hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            x = F.silu(gate) * x
        else:
            x = gelu_tanh(x)
        return self.fc2(x)


class Block(nn.Module):
    """``x + gamma1 attention(adaLN(x))``, then ``x + gamma2 MLP(adaLN(x))`` (DiT, https://arxiv.org/abs/2212.09748).

    Six vectors per sample (gamma1 gamma2 scale1 scale2 shift1 shift2) are projected from the condition. Each block has
    a projection of its own or, with ``adaln: shared``, adds a learned constant to one projection for all blocks.
    """

    checkpoint_activations = False
    """Whether the backward pass computes the block again instead of keeping what it computed
    (https://arxiv.org/abs/1604.06174)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.model_width
        self.norm = config.norm
        self.attention = Attention(config)
        self.mlp = MLP(config)
        if config.adaln == "block":
            self.adaln = nn.Linear(width, 6 * width)
        else:
            self.adaln_offset = nn.Parameter(torch.empty(6, width))
        self.shared = config.adaln == "shared"

    def modulation(self, cond: Tensor) -> Tensor:
        """B 6 D from the activated condition B D or, if shared, from the six projected vectors B 6 D."""
        return self.adaln_offset + cond if self.shared else self.adaln(cond).unflatten(-1, (6, -1))

    def forward(
        self,
        x_BLD: Tensor,
        six_B6D: Tensor | None,
        mask: AttentionMask,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        keep_B2: Tensor | None = None,
        cond: Tensor | None = None,
    ) -> Tensor:
        """``six_B6D`` is the output of ``modulation`` for the condition; None computes it here from ``cond``, so that
        nothing but a call of the block needs its weights.

        ``keep_B2`` scales each sample's two branches (stochastic depth: 0, or 1 / keep probability).
        """
        if self.checkpoint_activations and torch.is_grad_enabled():
            arguments = (x_BLD, six_B6D, mask, rotation, cache, layer, keep_B2, cond)
            # Nothing in a block is random.
            return checkpoint(self._forward, *arguments, use_reentrant=False, preserve_rng_state=False)  # type: ignore[return-value]
        return self._forward(x_BLD, six_B6D, mask, rotation, cache, layer, keep_B2, cond)

    def _forward(
        self,
        x_BLD: Tensor,
        six_B6D: Tensor | None,
        mask: AttentionMask,
        rotation: tuple[Tensor, Tensor] | None,
        cache: KVCache | None,
        layer: int,
        keep_B2: Tensor | None,
        cond: Tensor | None,
    ) -> Tensor:
        if six_B6D is None:
            assert cond is not None
            six_B6D = self.modulation(cond)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = six_B6D[:, :, None].unbind(1)
        if keep_B2 is not None:
            gamma1 = gamma1 * keep_B2[:, 0, None, None].to(gamma1.dtype)
            gamma2 = gamma2 * keep_B2[:, 1, None, None].to(gamma2.dtype)
        h = modulate(normalize(x_BLD, self.norm), scale1, shift1)
        x_BLD = add_gated(x_BLD, self.attention(h, mask, rotation, cache, layer), gamma1)
        h = modulate(normalize(x_BLD, self.norm), scale2, shift2)
        return add_gated(x_BLD, self.mlp(h), gamma2)
