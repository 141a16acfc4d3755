"""The scale-wise causal transformer: predicts all tokens of a scale at once, given every coarser scale.

VAR, https://arxiv.org/abs/2404.02905.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.conditioning import Conditioner, ConditionSpec
from nextscale.config.sections import TransformerConfig
from nextscale.errors import ConfigError, NextscaleError
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import Schedule
from nextscale.tokens.space import TokenSpace
from nextscale.tokens.stem import Stem
from nextscale.transformer.attention import AttentionMask, KVCache, ScaleAttention, attention_mask
from nextscale.transformer.block import Block, normalize
from nextscale.transformer.functions import modulate
from nextscale.transformer.group_refiner import GroupRefiner, Refining
from nextscale.transformer.head import Head, StemHead, StemMemory, build_head
from nextscale.transformer.positions import rotation_angles
from nextscale.transformer.refiner import DrawNext, Refiner, refiner_width
from nextscale.transformer.stem import LinearStem


@dataclass(frozen=True)
class Modulation:
    """Vectors that depend on the condition alone: the start token B D, six per block B 6 D, and the head's B (2 D).

    ``shared`` is what blocks compute their vectors from. Where ``blocks`` holds None, they have yet to.
    """

    start_BD: Tensor
    blocks: Sequence[Tensor | None]
    head_B2D: Tensor
    shared: Tensor


class ScaleTransformer(nn.Module):
    """Maps scale inputs and a condition to the logits of every token.

    Args:
        config: sizes and variants.
        token_space: what a token is (sets the width of the head and the embedding of revealed tokens).
        feature_dim: F of ``ScaleInput.features``.
        schedule: the training data's; learned absolute positions are tied to it.
        conditions: the named conditions.
        stem: the modality's own stem (``tokens.stem.Stem``); None is a linear layer on features.
        codebook: V C, the vectors of the codes; needed for ``head: codebook``.
        scale_names: the names of the scales, for a refiner; None names those of ``schedule`` by number.

    Raises:
        ConfigError: settings that do not fit each other, the tokenizer or its stem.
    """

    def __init__(
        self,
        config: TransformerConfig,
        token_space: TokenSpace,
        feature_dim: int,
        schedule: Schedule,
        conditions: Sequence[ConditionSpec] = (),
        stem: Stem | None = None,
        codebook: Tensor | None = None,
        scale_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        width = config.model_width
        if width < 1:
            raise ConfigError("transformer.depth=0 needs a transformer.width: the default width is a multiple of depth")
        if width % config.num_heads or (width // config.num_heads) % 2:
            raise ConfigError(f"transformer: width {width} must be an even multiple of heads {config.num_heads}")
        self.config, self.schedule, self.token_space = config, schedule, token_space
        self.conditioner = Conditioner(conditions, width)
        by_codes = _knows_by_codes(config, stem, codebook)
        self.stem: Stem = LinearStem(feature_dim, width, codebook if by_codes else None) if stem is None else stem
        self.attention = ScaleAttention(config.attention)
        if config.positions == "absolute":
            self.position = nn.Parameter(torch.empty(schedule.length, width))
        if config.scale_embedding:
            self.scale_embedding = nn.Embedding(len(schedule), width)
        self.embeds_revealed = config.in_scale_steps and not self.stem.complete
        if by_codes:
            self.known = nn.Parameter(torch.zeros(width))  # so that a model without in-scale steps can be given them
        elif self.embeds_revealed:
            self.revealed = token_space.embedding(width)
            self.hidden = nn.Parameter(torch.empty(width))
        if config.adaln == "shared":
            self.adaln = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_adaln = nn.Linear(width, 2 * width)
        self.head = build_head(config, token_space, self.stem, codebook)
        self._initialize()
        self.refiner = None  # built last, so that the same seed gives all other weights the same values
        if config.refiner is not None:
            names = [f"scale{k}" for k in range(len(schedule))] if scale_names is None else scale_names
            self.refiner = _build_refiner(config, token_space, names, self.stem, self.head)

    def forward(
        self,
        inputs: ScaleInput,
        cond: Tensor | Modulation,
        cache: KVCache | None = None,
        revealed: tuple[Tensor, Tensor] | None = None,
        keep: Tensor | None = None,
        by_scale: bool = False,
        tokens: Tensor | None = None,
        draw: DrawNext | None = None,
        times: int = 1,
    ) -> Tensor | list[Tensor]:
        """B L num_logits; with ``draw``, the tokens that it drew, (times B) L *token_shape.

        Args:
            inputs: one scale (with a cache), or all scales packed.
            cond: the output of ``conditioner``, B D, or the ``modulation`` computed from it.
            cache: holds the coarser scales; None if ``inputs`` is packed.
            revealed: for in-scale steps: tokens B L, and B L booleans that say which of them are known.
            keep: B depth 2, the multipliers of stochastic depth; None keeps every branch.
            by_scale: return the logits in parts along L, each B L_k V_k (``Stem.logits_by_scale``).
            tokens: for a refiner: B L *token_shape; the logits of a token depend on those before it in its scale.
            draw: for a refiner, with a single scale: called for one token after another, with its logits given the
                tokens drawn before it.
            times: with ``draw``: how often each sample is drawn, in successive rows, from the same hidden states.

        Raises:
            NextscaleError: a refined scale without ``tokens`` or ``draw``.
        """
        cond = self.modulation(cond, of_blocks=False) if isinstance(cond, Tensor) else cond
        hidden_BLD, memory = self.hidden_states(inputs, cond, cache, revealed, keep)
        refiner, drawn = self.refiner, None
        if refiner is not None and tokens is None and draw is None:
            if refiner.refines(inputs):
                raise NextscaleError("this transformer has a refiner: pass the tokens that it is to look at")
        elif isinstance(refiner, GroupRefiner):
            refining = refiner.begin(inputs, memory.of_stem)
            if draw is not None:
                return self._draw_in_groups(refiner, hidden_BLD, memory, refining, draw)
            assert tokens is not None
            hidden_BLD, drawn = refiner(hidden_BLD, refining, tokens), (tokens, refining.places)
        elif refiner is not None:
            if draw is not None:
                if times > 1:
                    hidden_BLD, inputs = hidden_BLD.repeat_interleave(times, 0), inputs.repeated(times)
                return refiner.draw(hidden_BLD, inputs, lambda part: self.head(part, memory).float(), draw)
            hidden_BLD = refiner(hidden_BLD, inputs, tokens)
        if by_scale:
            return [part.float() for part in self.head.by_scale(hidden_BLD, memory, drawn)]
        return self.head(hidden_BLD, memory, drawn).float()

    def _draw_in_groups(
        self, refiner: GroupRefiner, hidden_BLD: Tensor, memory: StemMemory, refining: Refining, draw: DrawNext
    ) -> Tensor:
        def logits(part: Tensor, tokens: Tensor) -> Tensor:
            (of_scale,) = self.head.by_scale(part, memory, (tokens, refining.places))
            return of_scale.float()

        return refiner.draw(hidden_BLD, refining, logits, draw)

    def hidden_states(
        self,
        inputs: ScaleInput,
        cond: Modulation,
        cache: KVCache | None,
        revealed: tuple[Tensor, Tensor] | None,
        keep: Tensor | None,
    ) -> tuple[Tensor, StemMemory]:
        """B L D, what the head maps to logits, and what the stem keeps for that."""
        x_BLD, memory = self.embed(inputs, cond.start_BD, revealed)
        if cache is not None:
            cache.begin(inputs)
        mask = attention_mask(self.attention, inputs, cache) if len(self.blocks) else AttentionMask()
        rotation = None
        if self.config.positions == "rotary":
            rotation = rotation_angles(inputs.coordinates, self.config.model_width // self.config.num_heads)
        for layer, (block, six_B6D) in enumerate(zip(self.blocks, cond.blocks, strict=True)):
            kept = None if keep is None else keep[:, layer]
            x_BLD = block(x_BLD, six_B6D, mask, rotation, cache, layer, kept, cond.shared)
        scale, shift = cond.head_B2D.unflatten(-1, (2, -1))[:, :, None].unbind(1)
        return modulate(normalize(x_BLD, self.config.norm), scale, shift), memory

    def modulation(self, cond_BD: Tensor, of_blocks: bool = True) -> Modulation:
        """The adaLN vectors of a condition. They are the same at every scale, so sampling computes them once. In
        training, each block computes its own (``of_blocks=False``)."""
        active_BD = F.silu(cond_BD)
        shared = self.adaln(active_BD).unflatten(-1, (6, -1)) if self.config.adaln == "shared" else active_BD
        blocks = [block.modulation(shared) if of_blocks else None for block in self._blocks()]
        return Modulation(cond_BD, blocks, self.head_adaln(active_BD), shared)

    def embed(
        self, inputs: ScaleInput, cond_BD: Tensor, revealed: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, StemMemory]:
        """The embeddings B L D, and what the stem keeps for its logits.

        The embeddings are the stem's, plus the condition where nothing is known yet, plus those of positions, scales
        and revealed tokens.
        """
        number, start = inputs.num_samples, inputs.num_start
        seen = None if revealed is None else (revealed[0][:number], revealed[1][:number])
        x_BLD, of_stem = self.stem(inputs, seen)
        if len(cond_BD) > number:  # guidance: both halves of the batch share what the stem saw
            x_BLD = x_BLD.repeat(len(cond_BD) // number, 1, 1)
        if start == inputs.length:
            x_BLD = x_BLD + cond_BD[:, None]
        elif start:
            x_BLD = torch.cat([x_BLD[:, :start] + cond_BD[:, None], x_BLD[:, start:]], 1)
        if self.config.positions == "absolute":
            x_BLD = x_BLD + self.position[self._span(inputs)]
        if self.config.scale_embedding:
            if max(inputs.scales) >= self.scale_embedding.num_embeddings:
                raise ConfigError(
                    f"this transformer was built for {self.scale_embedding.num_embeddings} scales; "
                    "set transformer.scale_embedding=false to use other schedules"
                )
            x_BLD = x_BLD + self.scale_embedding(inputs.scale_ids)
        if self.embeds_revealed:
            x_BLD = x_BLD + self._reveal(revealed)
        return x_BLD, StemMemory(number, of_stem)

    def _reveal(self, revealed: tuple[Tensor, Tensor] | None) -> Tensor | float:
        if self.config.known_tokens == "codes":  # the stem embeds the tokens; this says where they are
            return 0.0 if revealed is None else revealed[1][..., None] * self.known
        if revealed is None:
            return self.hidden
        tokens_BL, known_BL = revealed
        tokens_BLD = self.revealed(tokens_BL)
        return torch.where(known_BL[..., None], tokens_BLD, self.hidden.to(tokens_BLD.dtype))

    def _span(self, inputs: ScaleInput) -> slice:
        """The places of these tokens in the schedule that the learned positions belong to."""
        first, last = min(inputs.scales), max(inputs.scales)
        if last < len(self.schedule):
            span = slice(self.schedule.offsets[first], self.schedule.offsets[last + 1])
            if span.stop - span.start == inputs.length:
                return span
        raise ConfigError(
            f"learned absolute positions are tied to the schedule {self.schedule.shapes}; "
            "train with transformer.positions=rotary to use others"
        )

    @torch.no_grad()
    def _initialize(self) -> None:
        """Published VAR's initialisation: small residual branches, gammas near zero, a small head."""
        std = math.sqrt(1 / self.config.model_width / 3)

        def normal(tensor: Tensor, std: float = std) -> None:
            nn.init.trunc_normal_(tensor, std=std, a=-3 * std, b=3 * std)

        own = set(self.stem.modules()) if self.stem.complete else set()
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
        self.head.initialize()
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


def _knows_by_codes(config: TransformerConfig, stem: Stem | None, codebook: Tensor | None) -> bool:
    """Whether known tokens of a scale are embedded by their code vectors.

    Raises:
        ConfigError: they should be, and cannot.
    """
    if config.known_tokens == "embedding":
        return False
    for wrong, why in (
        (not config.in_scale_steps, "needs transformer.in_scale_steps=true to know tokens of a scale"),
        (stem is not None, f"has no effect: {type(stem).__name__} embeds known tokens itself"),
        (codebook is None, "needs a tokenizer whose tokens are codes of a codebook"),
    ):
        if wrong:
            raise ConfigError(f"transformer.known_tokens=codes {why}: set transformer.known_tokens=embedding")
    return True


def _build_refiner(
    config: TransformerConfig, token_space: TokenSpace, scale_names: Sequence[str], stem: Stem, head: Head
) -> Refiner:
    """Raises ConfigError if these settings, or this stem, take no refiner."""
    if config.in_scale_steps:
        raise ConfigError(
            "transformer.refiner and transformer.in_scale_steps both let the tokens of a scale know each other: set "
            "transformer.in_scale_steps=false or transformer.refiner=null"
        )
    if not stem.complete:
        return Refiner(config, token_space, scale_names)
    refinement = stem.build_refinement(refiner_width(config))
    if refinement is None:
        raise ConfigError(
            f"transformer.refiner needs the transformer's own head or a stem's refinement, and {type(stem).__name__} "
            "computes logits itself: "
            "set transformer.refiner=null (with transformer.in_scale_steps=true, tokens know each other)"
        )
    assert isinstance(head, StemHead)
    head.refine(refinement)
    return GroupRefiner(config, token_space, scale_names, refinement)
