"""The scorer: a small transformer that tells real token maps of a scale from those that a transformer draws.

A next-scale transformer draws the tokens of a scale independently, given the coarser ones. A scorer sees them together.
Trained to tell real from drawn, its logit estimates how much likelier a token map is in the data than among those that
are drawn. Sampling keeps the drawn map with the highest one. LSRS, https://arxiv.org/abs/2512.03796.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextscale.conditioning import Conditioner
from nextscale.config.sections import ScorerConfig
from nextscale.errors import ConfigError
from nextscale.tokens.inputs import ScaleInput
from nextscale.transformer.head import LinearHead
from nextscale.transformer.model import ScaleTransformer
from nextscale.transformer.refiner import WIDTH


class Scorer(nn.Module):
    """Maps the inputs and the tokens of scales, and a condition, to one logit per sample and scale.

    Its body is a transformer in which the tokens of a scale are revealed and see each other, but no other scale: what
    is known of those is in the inputs. Its settings are those of the transformer, except for the size.

    Args:
        transformer: whose draws are scored. The scorer takes its settings, but neither its weights nor its result.
        feature_dim: F of ``ScaleInput.features``.

    Raises:
        ConfigError: the width does not fit the heads, or the transformer has a stem of the modality's own.
    """

    def __init__(self, config: ScorerConfig, transformer: ScaleTransformer, feature_dim: int) -> None:
        super().__init__()
        if transformer.stem.complete:
            raise ConfigError(
                f"a scorer embeds tokens by itself, and {type(transformer.stem).__name__} gives them a meaning of its "
                "own: this modality cannot have one, and draws with sampling.candidates=1"
            )
        width = config.width or min(WIDTH, transformer.config.model_width)
        heads = config.heads or max(1, width // 64)
        if width % heads or (width // heads) % 2:
            raise ConfigError(f"scorer: width {width} must be an even multiple of heads {heads}")
        size = {"depth": config.depth, "width": width, "heads": heads, "drop_path": 0.0}
        sees = {"attention": "markov", "in_scale_steps": True, "known_tokens": "embedding", "refiner": None}
        own = transformer.config.model_copy(update=size | sees | {"head": "linear"})
        specs = transformer.conditioner.specs
        self.config = config
        self.body = ScaleTransformer(own, transformer.token_space, feature_dim, transformer.schedule, specs)
        self.body.head = LinearHead(width, 1)
        self.body.head.initialize()

    @property
    def conditioner(self) -> Conditioner:
        return self.body.conditioner

    def forward(self, inputs: ScaleInput, cond_BD: Tensor, tokens: Tensor) -> Tensor:
        """B K: the logit of each scale of ``inputs`` (one, or several packed) to be real, the mean over its tokens.

        Args:
            cond_BD: the output of ``conditioner``.
            tokens: B L *token_shape.
        """
        every_BL = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        logits = self.body(inputs, cond_BD, revealed=(tokens, every_BL))
        assert isinstance(logits, Tensor)
        real_BL = every_BL if inputs.mask is None else inputs.mask
        lengths = [*inputs.scales.values()]
        sums = (logits[..., 0] * real_BL).split(lengths, 1), real_BL.split(lengths, 1)
        return torch.stack([part.sum(1) / real.sum(1).clamp_min(1) for part, real in zip(*sums, strict=True)], 1)
