"""Several token maps of a scale, of which a scorer keeps the likeliest (LSRS, https://arxiv.org/abs/2512.03796)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from nextscale.config.sections import SamplingConfig
from nextscale.errors import ConfigError
from nextscale.memory import chunk_size
from nextscale.sampling import refined, scale
from nextscale.sampling.kept import Kept
from nextscale.sampling.scale import ScaleSettings
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.space import Generators, TokenSpace
from nextscale.transformer import ScaleTransformer, Scorer

SCORED_AT_ONCE = 2**15
"""Tokens scored at once on a CPU. A scorer of width 256 takes about 16 kB for each."""


def check_candidates(config: SamplingConfig, scorer: Scorer | None) -> None:
    """Raise ConfigError if several candidates cannot be drawn and compared."""
    if config.candidates == 1:
        return
    what, alone = f"sampling.candidates={config.candidates}", "or sampling.candidates=1"
    if scorer is None:
        raise ConfigError(
            f"{what} needs a scorer: train one on the finished run with --stage scorer --resume auto, {alone}"
        )
    if config.smooth:
        raise ConfigError(f"{what} compares tokens, and smooth sampling mixes codes: set smooth=false, {alone}")
    steps = config.steps if isinstance(config.steps, tuple) else (config.steps,)
    if max(steps) > 1 or config.reveal == "groups":
        one = "steps=1" if max(steps) > 1 else "reveal=random"
        raise ConfigError(f"{what} draws a scale at once, as its scorer has learned it: set {one}, {alone}")


class Chooser:
    """Draws ``candidates`` token maps of a scale for each sample, and keeps the one with the highest score.

    The transformer runs once per scale, because all candidates follow the same coarser scales. With one generator per
    sample, all candidates of a sample are drawn from its own.
    """

    def __init__(self, scorer: Scorer, conditions: Mapping[str, Tensor], num_samples: int, candidates: int) -> None:
        self.scorer, self.candidates = scorer, candidates
        self.cond_BD = scorer.conditioner(conditions, num_samples)
        self.at_once = chunk_size(SCORED_AT_ONCE, self.cond_BD.device)

    def draw_scale(
        self,
        predict: Callable[[tuple[Tensor, Tensor] | None], Tensor],
        transformer: ScaleTransformer,
        inputs: ScaleInput,
        num_samples: int,
        settings: ScaleSettings,
        generator: Generators,
        kept: Kept | None,
    ) -> tuple[Tensor, None]:
        """Tokens B L_k, as from ``scale.draw_scale`` in one step, but the best of several."""
        found: list[Tensor] = []

        def predict_once(revealed: tuple[Tensor, Tensor] | None) -> Tensor:
            if not found:
                found.append(predict(revealed))
            return found[0]

        arguments = (transformer, inputs, num_samples, settings, generator, kept)
        drawn = [scale.draw_scale(predict_once, *arguments)[0] for _ in range(self.candidates)]
        return self._best(inputs, torch.stack(drawn, 1)), None

    def draw_refined(
        self,
        run: Callable[..., Tensor],
        space: TokenSpace,
        inputs: ScaleInput,
        num_samples: int,
        settings: ScaleSettings,
        generator: Generators,
        kept: Kept | None,
    ) -> tuple[Tensor, None]:
        """Tokens B L_k, as from ``refined.draw_refined``, but the best of several, which are drawn side by side."""
        times = self.candidates
        if generator is not None and not isinstance(generator, torch.Generator):
            generator = [one for one in generator for _ in range(times)]
        kept = None if kept is None else kept.repeated(times)
        several, side_by_side = inputs.repeated(times), partial(run, times=times)
        tokens, _ = refined.draw_refined(side_by_side, space, several, times * num_samples, settings, generator, kept)
        return self._best(inputs, tokens.unflatten(0, (num_samples, times))), None

    def _best(self, inputs: ScaleInput, tokens: Tensor) -> Tensor:
        """B L_k *token_shape: of ``tokens``, B candidates L_k *token_shape, those with the highest score."""
        scores = []
        for some in tokens.split(max(1, self.at_once // (len(tokens) * inputs.length)), 1):
            times = some.shape[1]
            known, cond_BD = inputs.repeated(times), self.cond_BD.repeat_interleave(times, 0)
            scores.append(self.scorer(known, cond_BD, some.flatten(0, 1)).view(-1, times))
        best_B = torch.cat(scores, 1).argmax(1)
        return tokens[torch.arange(len(tokens), device=tokens.device), best_B]
