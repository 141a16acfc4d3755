"""The adversarial part of stage 1: a PatchGAN discriminator, its hinge losses, and the weight that balances them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.distributed import total, world_size
from nextscale.errors import ConfigError

NORM_GROUPS = 8


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, https://arxiv.org/abs/1611.07004): one logit per overlapping patch of a 2-D grid.

    ``layers`` convolutions halve the resolution; two more do not. Small grids get fewer halvings, so that at least
    one logit is left. Where the paper has batch norm, this has group norm. Its statistics are computed per sample, so
    a batch gives the same result however it is split over processes and micro-batches, and real and reconstructed
    grids may be judged in one batch or in two.

    Args:
        channels: channels of the grids.
        width: channels after the first convolution; each later one doubles them, up to eight times.
        layers: maximum number of halvings.
        smallest_side: the shorter side of the smallest grids it will see.

    Raises:
        ConfigError: grids with a side of less than 3 places.
    """

    def __init__(self, channels: int, width: int = 64, layers: int = 3, smallest_side: int = 256) -> None:
        super().__init__()
        if smallest_side < 3:
            raise ConfigError(
                f"the adversarial loss needs grids of at least 3 places per side, got {smallest_side}; "
                "set tokenizer.adversarial.weight=0"
            )
        # Each of the last two convolutions removes one row and one column.
        while smallest_side >> layers < 3:
            layers -= 1
        self.layers = layers
        blocks: list[nn.Module] = []
        inputs = channels
        for i in range(layers + 1):
            outputs = width * min(2**i, 8)
            normed = i > 0  # as published, the first has no norm
            blocks.append(nn.Conv2d(inputs, outputs, 4, stride=2 if i < layers else 1, padding=1, bias=not normed))
            if normed:
                blocks.append(nn.GroupNorm(math.gcd(outputs, NORM_GROUPS), outputs))
            blocks.append(nn.LeakyReLU(0.2, inplace=True))
            inputs = outputs
        blocks.append(nn.Conv2d(inputs, 1, 4, padding=1))
        self.blocks = nn.Sequential(*blocks)
        self.apply(_initialise)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B 1 H' W' logits; positive means real."""
        return self.blocks(x_BCHW)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean of max(0, 1 - real) and of max(0, 1 + fake), halved (Lim & Ye 2017, https://arxiv.org/abs/1705.02894)."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """The adversarial loss of the tokenizer: minus the mean logit of its reconstructions."""
    return -fake_logits.mean()


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> Tensor:
    """The weight that makes the adversarial loss's gradient as large as the reconstruction loss's.

    |grad of reconstruction| / (|grad of adversarial| + 1e-4) with respect to the decoder's last weight, clamped to
    [0, 1e4] and detached (VQGAN, Esser et al. 2021, https://arxiv.org/abs/2012.09841, equation 7). Under
    torch.distributed the gradients are averaged over processes before their norms are taken. All processes must call
    this together; they all get the weight that a single process would get.
    """
    norms = []
    for loss in (reconstruction_loss, adversarial_loss):
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        norms.append((total(gradient) / world_size()).norm())
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, 1e4).detach()
