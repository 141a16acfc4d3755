"""The opponent of stage 1: a PatchGAN discriminator, its hinge losses, and the weight that balances them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.distributed import total, world_size
from nextscale.errors import ConfigError

NORM_GROUPS = 8


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, https://arxiv.org/abs/1611.07004): logits of the overlapping patches of a 2-D grid.

    ``layers`` convolutions halve the resolution, two more keep it. Small grids get fewer halvings, so that at
    least one logit is left. Where the paper has batch norm, this has group norm: its statistics are each sample's
    own, so that a batch gives the same result however it is split over processes and micro-batches, and real and
    reconstructed grids may be judged in one batch or in two.

    Args:
        channels: of the grids.
        width: channels after the first convolution; each later one doubles them, up to eight times.
        layers: most halvings.
        smallest_side: the shorter side of the smallest grids it will see.

    Raises:
        ConfigError: grids smaller than 3 places.
    """

    def __init__(self, channels: int, width: int = 64, layers: int = 3, smallest_side: int = 256) -> None:
        super().__init__()
        if smallest_side < 3:
            raise ConfigError(
                f"the adversarial loss needs grids of at least 3 places a side, got {smallest_side}; "
                "set tokenizer.adversarial.weight=0"
            )
        # The two last convolutions each take one row and column away.
        while smallest_side >> layers < 3:
            layers -= 1
        self.layers = layers
        blocks: list[nn.Module] = []
        inputs = channels
        for i in range(layers + 1):
            outputs = width * min(2**i, 8)
            normed = i > 0  # as published, not the first
            blocks.append(nn.Conv2d(inputs, outputs, 4, stride=2 if i < layers else 1, padding=1, bias=not normed))
            if normed:
                blocks.append(nn.GroupNorm(math.gcd(outputs, NORM_GROUPS), outputs))
            blocks.append(nn.LeakyReLU(0.2, inplace=True))
            inputs = outputs
        blocks.append(nn.Conv2d(inputs, 1, 4, padding=1))
        self.blocks = nn.Sequential(*blocks)
        self.apply(_initialise)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B 1 H' W' logits: positive for real."""
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
    """What the tokenizer minimises: minus the mean logit of its reconstructions."""
    return -fake_logits.mean()


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> Tensor:
    """Weight of the adversarial loss that makes its gradient as large as the reconstruction loss's.

    |grad of reconstruction| / (|grad of adversarial| + 1e-4) with respect to the decoder's last weight, clamped to
    [0, 1e4] and detached (VQGAN, Esser et al. 2021, https://arxiv.org/abs/2012.09841, equation 7). Under
    torch.distributed the norms are those of the gradients averaged over processes: so all processes, which must
    call this together, get one weight, and it is the one a single process would get.
    """
    norms = []
    for loss in (reconstruction_loss, adversarial_loss):
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        norms.append((total(gradient) / world_size()).norm())
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, 1e4).detach()
