"""The losses of stage 1: reconstruction, quantization, perceptual and adversarial."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.config.grid import AdversarialConfig, ConvolutionalConfig
from nextscale.data import Batch
from nextscale.distributed import gather
from nextscale.grid.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from nextscale.grid.measures import decibels
from nextscale.grid.networks import Decoder
from nextscale.grid.pyramid import Quantized
from nextscale.grid.tokenizer import GridTokenizer
from nextscale.objective import Objective
from nextscale.randomness import Draws

PRIOR_WEIGHT = 1e-3
"""Weight of the prior's loss, in nats per token. It trains the prior alone, and AdamW's steps do not depend on it. If
it were large, the prior's gradient would fill the norm to which all gradients are clipped."""


PRICE_STEPS = 20
"""Steps in which a price has nearly reached its value (``ScalePrior.record``)."""


class TokenizerObjective(Objective[GridTokenizer]):
    """Reconstruction (L1, L2, perceptual), quantization and adversarial losses of a multiscale VQ-VAE.

    ``toolkit.losses.grid_objectives`` builds it with the discriminator and perceptual loss that ``config`` asks for.

    Args:
        critic: the discriminator's objective; None leaves the adversarial loss out.
        perceptual: maps reconstructions and samples, both as returned by ``views``, to a scalar; None leaves the
            perceptual loss out.
    """

    name = "tokenizer"

    def __init__(
        self,
        tokenizer: GridTokenizer,
        config: ConvolutionalConfig,
        critic: CriticObjective | None = None,
        perceptual: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model, self.config = tokenizer, config
        if config.quantizer.rate > 0:
            self.complete_from = config.quantizer.rate_start + PRICE_STEPS
        self._unregistered = (critic, perceptual)  # in a tuple, so that neither is trained or saved here
        # The quantized micro-batches of this step, for ``after_step``.
        self._step = -1
        self._seen: list[Quantized] = []

    def forward(self, batch: Batch, step: int, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        samples = batch.samples
        quantizer_config = self.config.quantizer
        kept = None
        if quantizer_config.scale_dropout > 0:
            number = len(self.model.sides)
            dropped = draws.uniform() < quantizer_config.scale_dropout
            kept = torch.where(dropped, 1 + draws.integers(number), number)
        reconstruction, quantized = self.model.quantize(samples, kept, record=False)
        if step != self._step:
            self._seen.clear()
        self._step = step
        self._seen.append(replace(quantized, f_hat=quantized.f_hat.detach(), loss=quantized.loss.detach(), nats=None))
        scalars = self.reconstruction(reconstruction, samples)
        loss = scalars["reconstruction"] + quantized.loss
        scalars["quantization"] = quantized.loss.detach()
        if quantized.nats is not None:
            scalars["rate"] = quantized.nats.mean()
            loss = loss + PRIOR_WEIGHT * scalars["rate"] / quantized.pyramid.schedule.length
        critic = self._unregistered[0]
        if critic is not None and step >= self.config.adversarial.start:
            adversarial = hinge_generator_loss(critic.model(self.views(reconstruction)))
            weight = torch.tensor(self.config.adversarial.weight, device=samples.device)
            if self.config.adversarial.adaptive:
                assert isinstance(self.model.decoder, Decoder)
                last = self.model.decoder.last_layer
                weight = weight * adaptive_weight(scalars["reconstruction"], adversarial, last)
            loss = loss + weight * adversarial
            scalars |= {"adversarial": adversarial.detach(), "adversarial_weight": weight}
        if critic is not None:
            batch.scratch["views"] = self.views(samples), self.views(reconstruction).detach()
        return loss, {key: value.detach() for key, value in scalars.items()}

    def views(self, samples: Tensor) -> Tensor:
        """The 2-D grids that the discriminator and the perceptual loss look at; here the samples themselves."""
        return samples

    def reconstruction(self, reconstruction: Tensor, samples: Tensor) -> dict[str, Tensor]:
        """Losses of reconstructions, by name; ``reconstruction`` is their weighted sum."""
        squared, absolute = F.mse_loss(reconstruction, samples), F.l1_loss(reconstruction, samples)
        loss = self.config.l2 * squared + self.config.l1 * absolute
        scalars = {"l1": absolute, "l2": squared}
        perceptual = self._unregistered[1]
        if perceptual is not None:
            perceptual.to(samples.device)
            scalars["perceptual"] = perceptual(self.views(reconstruction), self.views(samples))
            loss = loss + self.config.perceptual.weight * scalars["perceptual"]
        return scalars | {"reconstruction": loss}

    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(model, GridTokenizer)
        samples = batch.samples
        pyramid = model.encode(samples)
        reconstruction = model.decode_tokens(pyramid).float()
        scalars = self.reconstruction(reconstruction.clamp(-1, 1), samples)
        psnr = decibels((reconstruction.clamp(-1, 1) - samples).square().flatten(1).mean(1)).mean()
        used = torch.tensor(pyramid.tokens.unique().numel() / model.token_space.vocabulary)  # in this batch alone
        found = {"loss": scalars["reconstruction"], "psnr": psnr, "codes_used": used}
        if model.pyramid.prior is not None:
            rate = model.quantize(samples, record=False)[1].nats
            assert rate is not None
            found["rate"] = rate.mean()  # nats per sample
        return found

    def after_step(self, step: int, draws: Draws) -> None:
        """Update code usage and the codebook, once per step and over the whole batch, however it was split."""
        quantizer = self.model.pyramid.quantizer
        quantizer.record(torch.stack([part.counts for part in self._seen]).sum(0))
        if quantizer.update == "ema":
            residuals = torch.cat([part.residuals for part in self._seen])
            quantizer.update_codebook(residuals, torch.cat([part.codes for part in self._seen]))
        config, prior = self.config.quantizer, self.model.pyramid.prior
        if prior is not None and step >= config.rate_start:
            prior.record(torch.stack([part.spread_K for part in self._seen if part.spread_K is not None]).mean(0))
        if config.revive_below > 0 and step % config.revive_every == 0:
            # Every process moves dead codes to the same vectors: those of the whole batch, in the order of its samples.
            parts_BLC = gather(torch.cat([_by_sample(part) for part in self._seen]))
            quantizer.revive(torch.cat(parts_BLC).flatten(0, 1), config.revive_below, draws.shared())
        self._seen.clear()


def _by_sample(quantized: Quantized) -> Tensor:
    """B L C: the vectors that were quantized, sample by sample (``quantized.residuals`` is scale by scale)."""
    number, lengths = len(quantized.pyramid), quantized.pyramid.schedule.lengths
    scales = quantized.residuals.split([number * length for length in lengths])
    return torch.cat([scale.unflatten(0, (number, -1)) for scale in scales], 1)


class CriticObjective(Objective[PatchDiscriminator]):
    """The PatchGAN discriminator's hinge loss on the tokenizer's latest reconstructions."""

    name = "discriminator"

    def __init__(self, config: AdversarialConfig, channels: int, smallest_side: int) -> None:
        super().__init__()
        self.model = PatchDiscriminator(channels, config.width, config.layers, smallest_side)
        self.lr, self.start = config.lr, config.start

    def forward(self, batch: Batch, step: int, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        real, fake = (self.model(views) for views in batch.scratch["views"])
        loss = hinge_discriminator_loss(real, fake)
        if step < self.start:  # it still runs, so that every process has the same gradients to average
            loss = loss * 0
        return loss, {"real": real.mean().detach(), "fake": fake.mean().detach()}
