"""The scale-wise causal transformer: predicts all tokens of a scale at once, given every coarser scale.

VAR, https://arxiv.org/abs/2404.02905.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.conditioning import Conditioner, ConditionSpec
from nextscale.config import TransformerConfig
from nextscale.errors import ConfigError
from nextscale.pyramid import Schedule
from nextscale.tokenizer import ScaleInput
from nextscale.tokenspace import TokenSpace
from nextscale.transformer.attention import AttentionMask, KVCache, ScaleAttention, attention_mask
from nextscale.transformer.block import Block, normalize
from nextscale.transformer.functions import modulate
from nextscale.transformer.head import CodebookHead
from nextscale.transformer.positions import rotation_angles
from nextscale.transformer.stem import Stem


@dataclass(frozen=True)
class Modulation:
    """Vectors that depend on the condition alone: the start token B D, six a block (B 6 D), and the head's, B (2 D)."""

    start_BD: Tensor
    blocks: list[Tensor]
    head_B2D: Tensor


class ScaleTransformer(nn.Module):
    """Maps scale inputs and a condition to the logits of every token.

    Args:
        config: sizes and variants.
        token_space: what a token is (width of the head, embedding of revealed tokens).
        feature_dim: F of ``ScaleInput.features``.
        schedule: the training data's; learned absolute positions are tied to it.
        conditions: the named conditions.
        stem: maps features B L F to embeddings B L D; a linear layer where None. A ``Stem`` maps inputs and revealed
            tokens to embeddings, and hidden states to logits.
        codebook: V C, where the codes lie, for ``head: codebook``.
    """

    def __init__(
        self,
        config: TransformerConfig,
        token_space: TokenSpace,
        feature_dim: int,
        schedule: Schedule,
        conditions: Sequence[ConditionSpec] = (),
        stem: nn.Module | None = None,
        codebook: Tensor | None = None,
    ) -> None:
        super().__init__()
        width = config.model_width
        if width < 1:
            raise ConfigError("transformer.depth=0 needs a transformer.width: there are no blocks to tell it from")
        if width % config.num_heads or (width // config.num_heads) % 2:
            raise ConfigError(f"transformer: width {width} must be an even multiple of heads {config.num_heads}")
        self.config, self.schedule, self.token_space = config, schedule, token_space
        self.conditioner = Conditioner(conditions, width)
        self.stem = stem if stem is not None else nn.Linear(feature_dim, width)
        self.attention = ScaleAttention(config.attention)
        if config.positions == "absolute":
            self.position = nn.Parameter(torch.empty(schedule.length, width))
        if config.scale_embedding:
            self.scale_embedding = nn.Embedding(len(schedule), width)
        if config.in_scale_steps and not isinstance(self.stem, Stem):
            self.revealed = token_space.embedding(width)
            self.hidden = nn.Parameter(torch.empty(width))
        if config.adaln == "shared":
            self.adaln = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_adaln = nn.Linear(width, 2 * width)
        if isinstance(self.stem, Stem):
            self.head = None
        elif config.head == "codebook":
            if codebook is None:
                raise ConfigError("transformer.head=codebook needs a tokenizer whose tokens are codes of a codebook")
            self.head = CodebookHead(width, codebook)
        else:
            self.head = nn.Linear(width, token_space.num_logits)
        self._initialize()

    def forward(
        self,
        inputs: ScaleInput,
        cond: Tensor | Modulation,
        cache: KVCache | None = None,
        revealed: tuple[Tensor, Tensor] | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """B L num_logits.

        Args:
            inputs: one scale (with a cache), or all scales packed.
            cond: what ``conditioner`` made of the conditions, B D, or ``modulation`` of that.
            cache: holds the coarser scales; None where ``inputs`` is packed.
            revealed: in-scale steps: tokens B L and which of them are known, B L booleans.
            keep: B depth 2, stochastic depth's multipliers; None keeps every branch.
        """
        cond = self.modulation(cond) if isinstance(cond, Tensor) else cond
        x_BLD, memory = self.embed(inputs, cond.start_BD, revealed)
        if cache is not None:
            cache.begin(inputs)
        mask = attention_mask(self.attention, inputs, cache) if len(self.blocks) else AttentionMask()
        rotation = None
        if self.config.positions == "rotary":
            rotation = rotation_angles(inputs.coordinates, self.config.model_width // self.config.num_heads)
        for layer, (block, six_B6D) in enumerate(zip(self.blocks, cond.blocks, strict=True)):
            kept = None if keep is None else keep[:, layer]
            x_BLD = block(x_BLD, six_B6D, mask, rotation, cache, layer, kept)
        scale, shift = cond.head_B2D.unflatten(-1, (2, -1))[:, :, None].unbind(1)
        hidden_BLD = modulate(normalize(x_BLD, self.config.norm), scale, shift)
        if isinstance(self.stem, Stem):
            return torch.cat([self.stem.logits(part, memory) for part in hidden_BLD.split(self._rows(inputs))]).float()
        assert self.head is not None
        return self.head(hidden_BLD).float()

    def modulation(self, cond_BD: Tensor) -> Modulation:
        """What adaLN makes of a condition: the same at every scale, so sampling computes it once."""
        active_BD = F.silu(cond_BD)
        shared = self.adaln(active_BD).unflatten(-1, (6, -1)) if self.config.adaln == "shared" else active_BD
        return Modulation(cond_BD, [block.modulation(shared) for block in self._blocks()], self.head_adaln(active_BD))

    def embed(self, inputs: ScaleInput, cond_BD: Tensor, revealed: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Any]:
        """B L D: start tokens where nothing is known yet, the stem's embeddings elsewhere, plus where they are; and
        what a stem remembers for its logits."""
        memory = None
        if isinstance(self.stem, Stem):
            # Under guidance, two halves of the batch share what the stem saw.
            rows = self._rows(inputs)
            seen = None if revealed is None else (revealed[0][:rows], revealed[1][:rows])
            x_BLD, memory = self.stem(inputs, seen)
            x_BLD = x_BLD.repeat(len(cond_BD) // rows, 1, 1) + cond_BD[:, None]
        elif inputs.features is None:
            x_BLD = cond_BD[:, None].expand(-1, inputs.length, -1)
        else:
            start_BLD = cond_BD[:, None].expand(-1, inputs.start, -1)
            x_BLD = torch.cat([start_BLD, self.stem(inputs.features[:, inputs.start :])], 1)
        if self.config.positions == "absolute":
            x_BLD = x_BLD + self.position[self._span(inputs)]
        if self.config.scale_embedding:
            if inputs.scale_ids[-1] >= self.scale_embedding.num_embeddings:
                raise ConfigError(
                    f"this transformer was built for {self.scale_embedding.num_embeddings} scales; "
                    "set transformer.scale_embedding=false to use other schedules"
                )
            x_BLD = x_BLD + self.scale_embedding(inputs.scale_ids)
        if self.config.in_scale_steps and not isinstance(self.stem, Stem):
            x_BLD = x_BLD + self._reveal(revealed)
        return x_BLD, memory

    @staticmethod
    def _rows(inputs: ScaleInput) -> int:
        """B of what a ``Stem`` sees."""
        return inputs.structure[0].num_samples

    def _reveal(self, revealed: tuple[Tensor, Tensor] | None) -> Tensor:
        if revealed is None:
            return self.hidden
        tokens_BL, known_BL = revealed
        tokens_BLD = self.revealed(tokens_BL)
        return torch.where(known_BL[..., None], tokens_BLD, self.hidden.to(tokens_BLD.dtype))

    def _span(self, inputs: ScaleInput) -> slice:
        """Where these tokens lie in the schedule that the learned positions belong to."""
        first, last = int(inputs.scale_ids[0]), int(inputs.scale_ids[-1])
        if last < len(self.schedule):
            span = slice(self.schedule.offsets[first], self.schedule.offsets[last + 1])
            if span.stop - span.start == inputs.length:
                return span
        shapes = " ".join("x".join(map(str, scale.shape)) for scale in self.schedule.scales)
        raise ConfigError(
            f"learned absolute positions are tied to the schedule {shapes}; "
            "train with transformer.positions=rotary to use others"
        )

    @torch.no_grad()
    def _initialize(self) -> None:
        """Published VAR's initialisation: small residual branches, nearly closed gammas, a small head."""
        std = math.sqrt(1 / self.config.model_width / 3)

        def normal(tensor: Tensor, std: float = std) -> None:
            nn.init.trunc_normal_(tensor, std=std, a=-3 * std, b=3 * std)

        own = set(self.stem.modules()) if isinstance(self.stem, Stem) else set()
        for module in self.modules():
            if module in own:
                continue
            if isinstance(module, nn.Linear):
                normal(module.weight)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                normal(module.weight)
        for parameter in self.conditioner.null.values():
            normal(parameter)
        for name in ("position", "hidden"):
            if hasattr(self, name):
                normal(getattr(self, name))
        for projection in self._adaln_projections():
            projection.weight.mul_(0.5)
            projection.weight[: 2 * self.config.model_width].mul_(2e-5)  # the gammas
        self.head_adaln.weight.mul_(0.5)
        if isinstance(self.head, CodebookHead):
            self.head.initialize()
        elif self.head is not None:
            self.head.weight.mul_(0.02)
        for block in self._blocks():
            block.attention.proj.weight.div_(math.sqrt(2 * len(self.blocks)))
            block.mlp.fc2.weight.div_(math.sqrt(2 * len(self.blocks)))
            if block.shared:
                normal(block.adaln_offset, self.config.model_width**-0.5)
                block.adaln_offset[:2].mul_(1e-5)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _adaln_projections(self) -> list[nn.Linear]:
        return [self.adaln] if self.config.adaln == "shared" else [block.adaln for block in self._blocks()]
