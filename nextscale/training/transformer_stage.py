"""Stage 2: train a scale-wise transformer on token pyramids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nextscale import distributed
from nextscale.config.sections import SamplingConfig, TransformerStageConfig
from nextscale.data import Batch, DataSplits
from nextscale.device import to_device
from nextscale.errors import ConfigError
from nextscale.modality import Modality
from nextscale.randomness import Draws
from nextscale.sampling.reveal import reveal_groups
from nextscale.sampling.turns import logits_in_turns, reveal_turns
from nextscale.storage.tokens import TokenStore
from nextscale.tokens.capabilities import Requantizes, ability
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.training.token_stage import TokenObjective, TokenStage, dropped_conditions
from nextscale.transformer import ScaleTransformer

REVEALED = 0.25
"""Expected share of tokens that ``reveal_some`` reveals."""
NATS, NATS_BOUND = "nats_per_sample", "nats_per_sample_bound"
"""Names of the cost of a sample's tokens: exact, and an estimate of an upper bound."""


class TransformerObjective(TokenObjective[ScaleTransformer]):
    """Cross-entropy of every token, given the ground truth of all coarser scales (teacher forcing)."""

    name = "transformer"

    def __init__(
        self, transformer: ScaleTransformer, tokenizer: MultiscaleTokenizer, config: TransformerStageConfig
    ) -> None:
        super().__init__(transformer, tokenizer)
        self.config = config
        for block in transformer.blocks:
            block.checkpoint_activations = config.checkpoint_activations  # type: ignore[assignment]

    def forward(self, batch: Batch, step: int, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        pyramid, seen = self._corrupted(batch, draws) if self.config.corrupt else [self.pyramid(batch)] * 2
        inputs = self.inputs(seen, batch)
        drop = dropped_conditions(self.model.conditioner.specs, self.config.condition_drop, draws)
        cond_BD = self.model.conditioner(batch.conditions, len(pyramid), drop)
        revealed, counts_BL = self._reveal(seen, inputs, draws)
        keep = stochastic_depth(self.model.config.depth, self.model.config.drop_path_rate, draws)
        logits = self.model(inputs, cond_BD, revealed=revealed, keep=keep, by_scale=True, tokens=seen.tokens)
        loss_BL, accuracy_BL = self.model.token_space.judge(logits, pyramid.tokens, self.config.label_smoothing)
        weight_BL = self._weights(pyramid, None if revealed is None else ~revealed[1])
        if counts_BL is not None:
            weight_BL = weight_BL * counts_BL
        if inputs.weight is not None:
            weight_BL = weight_BL * inputs.weight
        total = self._total_weight(pyramid, revealed is not None and counts_BL is None, inputs.weight)
        loss = (loss_BL * weight_BL).sum() / total
        if not loss.requires_grad:  # this batch has no token whose distribution is learned
            loss = loss + 0 * sum(parameter.sum() for parameter in self.model.parameters())
        return loss, {"accuracy": (accuracy_BL * weight_BL).sum() / total}

    def _reveal(
        self, pyramid: TokenPyramid, inputs: ScaleInput, draws: Draws
    ) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        """The tokens that a sub-step has revealed, and (with groups) the weight of each token."""
        if not self.model.config.in_scale_steps:
            return None, None
        if inputs.turns is not None:
            known_BL, counts_BL = reveal_turns(pyramid, inputs, draws)
            return (pyramid.tokens, known_BL), counts_BL
        if inputs.groups is None:
            return reveal_some(pyramid, draws), None
        known_BL, counts_BL = reveal_groups(pyramid, inputs.groups, draws)
        return (pyramid.tokens, known_BL), counts_BL

    def _corrupted(self, batch: Batch, draws: Draws) -> tuple[TokenPyramid, TokenPyramid]:
        """The tokens to predict, and those that the model sees, of which some are wrong.

        As in Infinity's self-correction (https://arxiv.org/abs/2412.04431), tokens of finer scales are chosen to follow
        the wrong ones, as the model should learn to do with its own mistakes.
        """
        if isinstance(batch.samples, TokenPyramid):
            raise ConfigError(
                "training.transformer.corrupt chooses tokens anew, which needs samples instead of cached tokens: "
                "set training.transformer.cache=false"
            )
        tokenizer, replaced = ability(self.tokenizer, Requantizes), mistakes(self.config.corrupt, self.tokenizer, draws)
        with torch.no_grad(), torch.autocast(self.tokenizer.device.type, enabled=False):
            return tokenizer.encode_after(batch.samples, replaced)

    def _total_weight(self, pyramid: TokenPyramid, some_revealed: bool, weight_BL: Tensor | None) -> Tensor:
        """The divisor of the loss summed over this part of the batch.

        It must not depend on how the batch was split. So it takes the expected share of unrevealed tokens, and counts
        padding over all processes.
        """
        weights = self._weights(pyramid, None)
        total = (weights if weight_BL is None else weights * weight_BL).sum()
        if pyramid.mask is not None:
            total = distributed.total(total) / distributed.world_size()
        return (total * (1 - REVEALED if some_revealed else 1)).clamp_min(1e-9)

    def _weights(self, pyramid: TokenPyramid, predicted: Tensor | None) -> Tensor:
        """B L: the weight of each token's loss; 0 for padding and for tokens that the input reveals."""
        weight = torch.ones(pyramid.tokens.shape[:2], device=pyramid.tokens.device)
        if self.config.scale_weights is not None:
            per_scale = torch.tensor(token_weights(self.config.scale_weights, pyramid.schedule))
            weight = weight * to_device(per_scale, weight.device)[pyramid.schedule.scale_ids(weight.device)]
        for mask in (pyramid.mask, predicted):
            weight = weight if mask is None else weight * mask
        return weight

    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Mean loss and accuracy, over all tokens and per scale; nothing is dropped, corrupted or smoothed.

        Also ``nats_per_sample``: the negative log-likelihood of all tokens of a sample, the mean over samples. Tokens
        of a scale are drawn independently given the coarser ones, so the sum of their losses is exact for sampling in
        one step per scale, at temperature 1, unguided and unfiltered. It is also exact where the tokenizer fixes the
        sub-step of each token (``logits_in_turns``). Where tokens of a group are drawn in random order, it is
        ``nats_per_sample_bound`` instead: an estimate, at one sub-step per sample and scale, of an upper bound
        (https://arxiv.org/abs/2110.02037).
        """
        assert isinstance(model, ScaleTransformer)
        pyramid = self.pyramid(batch)
        inputs = self.inputs(pyramid, batch)
        revealed = counts_BL = None
        if inputs.groups is not None and model.config.in_scale_steps:
            # Tokens are drawn one after another: always evaluate the likelihood bound at the same sub-steps.
            every = Draws(0, 0, slice(0, len(pyramid)), len(pyramid), pyramid.tokens.device)
            revealed, counts_BL = self._reveal(pyramid, inputs, every)
        cond_BD = model.conditioner(batch.conditions, len(pyramid))
        if inputs.turns is not None and model.config.in_scale_steps:
            logits = logits_in_turns(model, pyramid, inputs, cond_BD)
        else:
            logits = model(inputs, cond_BD, revealed=revealed, by_scale=True, tokens=pyramid.tokens)
        loss_BL, accuracy_BL = model.token_space.judge(logits, pyramid.tokens)
        mask_BL = torch.ones_like(loss_BL) if pyramid.mask is None else pyramid.mask.to(loss_BL.dtype)
        weight_BL = mask_BL if counts_BL is None else mask_BL * counts_BL
        scalars = {"loss": _mean(loss_BL, weight_BL, mask_BL), "accuracy": _mean(accuracy_BL, weight_BL, mask_BL)}
        scalars[NATS if counts_BL is None else NATS_BOUND] = (loss_BL * weight_BL).sum(1).mean()
        names = self.tokenizer.scale_names(len(pyramid.schedule))
        scale_L = pyramid.schedule.scale_ids(loss_BL.device)
        for name in dict.fromkeys(names):
            chosen = torch.tensor([k for k, other in enumerate(names) if other == name], device=loss_BL.device)
            of = torch.isin(scale_L, chosen)
            scalars[f"loss/{name}"] = _mean(loss_BL[:, of], weight_BL[:, of], mask_BL[:, of])
            scalars[f"accuracy/{name}"] = _mean(accuracy_BL[:, of], weight_BL[:, of], mask_BL[:, of])
        return scalars


def _mean(values: Tensor, weights: Tensor, counted: Tensor) -> Tensor:
    return (values * weights).sum() / counted.sum().clamp_min(1)


def token_weights(scale_weights: str | Sequence[float], schedule: Schedule) -> list[float]:
    """The weight of a token of each scale (``training.transformer.scale_weights``)."""
    if scale_weights == "root":
        return [length**-0.5 for length in schedule.lengths]
    of_scale = [1.0] * len(schedule) if isinstance(scale_weights, str) else scale_weights
    return [weight / length for weight, length in zip(of_scale, schedule.lengths, strict=True)]


def mistakes(share: float, tokenizer: MultiscaleTokenizer, draws: Draws) -> Callable[[Tensor, int], Tensor]:
    """A function that replaces ``share`` of the tokens of a scale (B L_k) at random, like mistakes of a model."""

    def replaced(tokens: Tensor, k: int) -> Tensor:
        hit = draws.uniform(*tokens.shape[1:]) < share
        return torch.where(hit, draws.integers(tokenizer.token_space.vocabulary, *tokens.shape[1:]), tokens)

    return replaced


def reveal_some(pyramid: TokenPyramid, draws: Draws) -> tuple[Tensor, Tensor]:
    """For in-scale steps: reveal nothing of a scale half of the time, else a random share (uniform from 0 to 1)."""
    schedule, device = pyramid.schedule, pyramid.tokens.device
    share_BK = (draws.uniform(len(schedule)) * 2 - 1).clamp_min(0)
    known = draws.uniform(schedule.length) < share_BK[:, schedule.scale_ids(device)]
    return pyramid.tokens, known


def stochastic_depth(depth: int, rate: float, draws: Draws) -> Tensor | None:
    """B depth 2 multipliers: 0 with a probability that grows linearly to ``rate``, else 1 / keep probability.

    https://arxiv.org/abs/1603.09382
    """
    if rate == 0:
        return None
    drop = torch.linspace(0, rate, depth, device=draws.device)[:, None]
    return (draws.uniform(depth, 2) >= drop).float() / (1 - drop).clamp_min(1e-6)


class TransformerStage(TokenStage):
    name, salt = "transformer", 2

    def __init__(
        self,
        modality: Modality,
        tokenizer: MultiscaleTokenizer,
        transformer: ScaleTransformer,
        data: DataSplits,
        stores: tuple[TokenStore, TokenStore] | None,
        config: TransformerStageConfig,
        sampling: SamplingConfig,
        seed: int,
    ) -> None:
        super().__init__(modality, tokenizer, transformer, data, stores, config, sampling, seed)
        self.objectives = [TransformerObjective(transformer, tokenizer, config)]

    def draw_samples(self, model: nn.Module, path: Path) -> Path | None:
        assert isinstance(model, ScaleTransformer)
        return self.draw_sheet(model, self.sampling, path)
