"""A stage on top of a trained transformer: train a scorer to tell real token maps from those that it draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.config.sections import SamplingConfig, ScorerStageConfig
from nextscale.data import Batch, DataSplits
from nextscale.modality import Modality
from nextscale.randomness import Draws
from nextscale.sampling.generate import generate
from nextscale.sampling.predictor import check_finite
from nextscale.storage.tokens import TokenStore
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import TokenPyramid
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.training.token_stage import TokenObjective, TokenStage, dropped_conditions
from nextscale.transformer import ScaleTransformer, Scorer

SHOWN = 4
"""Candidates in the pictures of a run that draws one."""


class ScorerObjective(TokenObjective[Scorer]):
    """Binary cross-entropy per sample and scale: real tokens against drawn ones.

    Both follow the same real tokens of the coarser scales. The transformer draws them as ``sampling`` says, guidance
    and all, so that the scorer learns to judge the candidates among which it will choose.
    """

    name = "scorer"

    def __init__(
        self,
        scorer: Scorer,
        transformer: ScaleTransformer,
        tokenizer: MultiscaleTokenizer,
        config: ScorerStageConfig,
        sampling: SamplingConfig,
    ) -> None:
        super().__init__(scorer, tokenizer)
        self.config = config
        self.sampling = sampling.model_copy(update={"candidates": 1, "smooth": False, "require": None})
        self._drawing = (transformer.eval().requires_grad_(False),)  # in a tuple for the same reason as the tokenizer

    def forward(self, batch: Batch, step: int, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        pyramid = self.pyramid(batch)
        drawn, finite = self.drawn(pyramid, batch, draws.seeds())
        drop = dropped_conditions(self.model.conditioner.specs, self.config.condition_drop, draws)
        cond_BD = self.model.conditioner(batch.conditions, len(pyramid), drop)
        loss_BK, right_BK, real_BK = self._judge(self.model, self.inputs(pyramid, batch), cond_BD, pyramid, drawn)
        # Training stops at a loss that is not finite. Asking here would wait for the device at every step.
        loss = torch.where(finite, _mean(loss_BK, real_BK), torch.nan)
        return loss, {"accuracy": _mean(right_BK, real_BK)}

    def drawn(self, pyramid: TokenPyramid, batch: Batch, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """B L *token_shape: each scale as the transformer draws it after the real tokens of the coarser ones; and
        whether all its logits were finite (a boolean on the device)."""
        device = pyramid.tokens.device
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        models = self.tokenizer, self._drawing[0]
        with torch.autocast(device.type, enabled=False):
            result = generate(*models, len(pyramid), batch.conditions, self.sampling, generators, follow=pyramid)
        assert result.finite is not None
        # Clones, because autograd takes no tensors of the inference mode.
        return result.pyramid(pyramid.schedule).tokens, result.finite.clone()

    def _judge(
        self, model: Scorer, inputs: ScaleInput, cond_BD: Tensor, pyramid: TokenPyramid, drawn: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """B K each: the mean loss of the real and the drawn tokens, the share of the two that is told rightly, and
        whether the sample has tokens of that scale at all."""
        tokens = torch.stack([pyramid.tokens, drawn], 1).flatten(0, 1)
        logits = model(inputs.repeated(2), cond_BD.repeat_interleave(2, 0), tokens).unflatten(0, (-1, 2))
        is_real = (1.0 - torch.arange(2, device=logits.device))[:, None].expand_as(logits)
        loss = F.binary_cross_entropy_with_logits(logits, is_real, reduction="none")
        right = ((logits > 0) == is_real.bool()).float()
        every = torch.ones(pyramid.tokens.shape[:2], dtype=torch.bool, device=logits.device)
        mask_BL = every if pyramid.mask is None else pyramid.mask
        real_BK = torch.stack([part.any(1) for part in mask_BL.split(pyramid.schedule.lengths, 1)], 1)
        return loss.mean(1), right.mean(1), real_BK.float()

    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Loss and accuracy, in total and per scale. Guessing has a loss of log 2 and an accuracy of 1/2; a scorer does
        no better at a scale whose drawn tokens are as likely as real ones."""
        assert isinstance(model, Scorer)
        pyramid = self.pyramid(batch)
        drawn, finite = self.drawn(pyramid, batch, range(len(pyramid)))
        check_finite(finite)
        cond_BD = model.conditioner(batch.conditions, len(pyramid))
        loss_BK, right_BK, real_BK = self._judge(model, self.inputs(pyramid, batch), cond_BD, pyramid, drawn)
        scalars = {"loss": _mean(loss_BK, real_BK), "accuracy": _mean(right_BK, real_BK)}
        names = self.tokenizer.scale_names(len(pyramid.schedule))
        for name in dict.fromkeys(names):
            of = torch.tensor([name == other for other in names], device=loss_BK.device)
            scalars[f"loss/{name}"] = _mean(loss_BK[:, of], real_BK[:, of])
            scalars[f"accuracy/{name}"] = _mean(right_BK[:, of], real_BK[:, of])
        return scalars


class ScorerStage(TokenStage):
    name, salt = "scorer", 4
    resumed_by = "--stage scorer --resume auto"

    def __init__(
        self,
        modality: Modality,
        tokenizer: MultiscaleTokenizer,
        transformer: ScaleTransformer,
        scorer: Scorer,
        data: DataSplits,
        stores: tuple[TokenStore, TokenStore] | None,
        config: ScorerStageConfig,
        sampling: SamplingConfig,
        seed: int,
    ) -> None:
        super().__init__(modality, tokenizer, transformer, data, stores, config, sampling, seed)
        self.transformer = transformer
        self.objectives = [ScorerObjective(scorer, transformer, tokenizer, config, sampling)]

    def draw_samples(self, model: nn.Module, path: Path) -> Path | None:
        assert isinstance(model, Scorer)
        number = self.sampling.candidates if self.sampling.candidates > 1 else SHOWN
        sampling = self.sampling.model_copy(update={"candidates": number})
        return self.draw_sheet(self.transformer, sampling, path, model)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return (values * counted).sum() / counted.sum().clamp_min(1)
