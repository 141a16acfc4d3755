"""The independent classifier of samples on a grid: a small convolutional network trained on the real training split.

It judges samples twice: by the share it puts into the class that was asked for, and by distances between its
penultimate features. It has seen no sample and shares nothing with the model that is judged.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nextscale.errors import DataError

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
# Twice as fast as the default layout on CPUs.
_LAYOUTS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
FEATURES = 128
RECIPE = 1
"""Part of the cache's key: to be raised with every change of the network or of its training."""


class Classifier(nn.Module):
    """Blocks of two convolutions and a halving, then two linear layers.

    Takes samples B C *grid in [-1, 1] of the size it was built for; gives logits, B num_classes.

    Args:
        channels, size: of the samples.
        num_classes: of the labels.
        width: channels of the first block; each later one doubles them.
    """

    def __init__(self, channels: int, size: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__()
        self.layout, axes = _LAYOUTS[len(size)], len(size)
        # From 16 places on, the first convolution halves too: the full resolution would take most of the time.
        stride = 2 if min(size) >= 16 else 1
        sides = [_halved(side) if stride == 2 else side for side in size]
        outputs = width
        blocks: list[nn.Module] = [_convolution(axes, channels, width, 5 if stride == 2 else 3, stride)]
        while len(blocks) < 5 or min(sides) > 4:  # two blocks at least; 2 to 4 places a side remain
            if len(blocks) > 1:
                blocks.append(_convolution(axes, outputs, 2 * outputs))
                outputs *= 2
            blocks += [_convolution(axes, outputs, outputs), _POOLS[axes](2, ceil_mode=True)]
            sides = [_halved(side) for side in sides]
        self.blocks = nn.Sequential(*blocks)
        self.hidden = nn.Linear(outputs * math.prod(sides), FEATURES)
        self.output = nn.Linear(FEATURES, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """B FEATURES: the penultimate activations, the space of the classifier's Fréchet and kernel distances."""
        x = self.blocks(x.contiguous(memory_format=self.layout))
        return F.relu(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.dropout(self.features(x), 0.3, self.training))


def _convolution(axes: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    convolution = _CONVOLUTIONS[axes](inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, _NORMS[axes](outputs), nn.ReLU(inplace=True))


def _halved(side: int) -> int:
    return -(-side // 2)


def train_classifier(
    samples_N: Tensor,
    labels_N: Tensor,
    num_classes: int,
    seed: int = 0,
    *,
    width: int | None = None,
    epochs: int | None = None,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Train the independent classifier, with shifts by up to one place and no other augmentation.

    The result is a function of the arguments (and of the device and its number of threads, whose rounding differs).

    Args:
        samples_N: N C *grid in [-1, 1].
        labels_N: integers below ``num_classes``.
        width: channels of the first block; None takes 32.
        epochs: None takes what shows about 420,000 samples, and at most 20 epochs (28 x 28, 60,000 images: 7).

    Raises:
        DataError: no samples, or labels that do not fit them.
    """
    if len(samples_N) == 0 or len(samples_N) != len(labels_N):
        raise DataError(f"a classifier needs one label a sample: {len(samples_N)} samples, {len(labels_N)} labels")
    if int(labels_N.min()) < 0 or int(labels_N.max()) >= num_classes:
        raise DataError(f"labels must be 0 to {num_classes - 1}, got {int(labels_N.min())} to {int(labels_N.max())}")
    n, channels, *size = samples_N.shape
    batch_size = min(n, 64 if n < 10_000 else 128)
    steps_per_epoch = n // batch_size
    epochs = epochs or max(1, min(20, round(420_000 / n)))
    device = torch.device(device)
    # Initialisation, order, shifts and dropout draw from the global generators, which get their state back.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = Classifier(channels, size, num_classes, width or 32).to(device)
        network = network.to(memory_format=network.layout)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=3e-3, total_steps=epochs * steps_per_epoch, pct_start=0.2
        )
        network.train()
        for _ in range(epochs):
            order = torch.randperm(n)
            # A last part of a batch is left out: batch norm would be noisy on it. The next epoch has another.
            for step in range(steps_per_epoch):
                index = order[step * batch_size : (step + 1) * batch_size]
                x = _shift(samples_N[index].float()).to(device)
                loss = F.cross_entropy(network(x), labels_N[index].long().to(device), label_smoothing=0.05)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
    return network.eval()


def _shift(x: Tensor) -> Tensor:
    """Each sample moved by -1, 0 or 1 place along each axis, edges repeated. Draws from the global generator."""
    batch, _, *size = x.shape
    axes = len(size)
    padded = F.pad(x, [1, 1] * axes, mode="replicate")
    shifts = torch.randint(3, (axes, batch))
    places = []
    for axis, side in enumerate(size):
        index = shifts[axis][:, None] + torch.arange(side)
        places.append(index.view(batch, *[side if i == axis else 1 for i in range(axes)]))
    every = torch.arange(batch).view(batch, *[1] * axes)
    return padded[(every, slice(None), *places)].movedim(-1, 1)


@torch.inference_mode()
def classify(network: Classifier, samples_N: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Features (N FEATURES) and predicted classes (N), on the CPU."""
    device = next(network.parameters()).device
    features, classes = [], []
    for x in samples_N.split(batch_size):
        features.append(network.features(x.float().to(device)).cpu())
        classes.append(network.output(features[-1].to(device)).argmax(1).cpu())
    return torch.cat(features), torch.cat(classes)


def cached_classifier(
    folder: Path | str | None,
    samples_N: Tensor,
    labels_N: Tensor,
    num_classes: int,
    seed: int = 0,
    *,
    width: int | None = None,
    epochs: int | None = None,
    device: torch.device | str = "cpu",
) -> Classifier:
    """``train_classifier``, or what it gave before: weights are kept in ``folder`` (None keeps nothing).

    The file is named by a hash of all that decides them: the samples, the labels, the seed and the recipe. A file
    that cannot be read is replaced.
    """
    wanted = {"width": width, "epochs": epochs}
    if folder is None:
        return train_classifier(samples_N, labels_N, num_classes, seed, **wanted, device=device)
    path = Path(folder) / f"classifier-{classifier_key(samples_N, labels_N, num_classes, seed, **wanted)}.safetensors"
    if path.exists():
        network = Classifier(samples_N.shape[1], samples_N.shape[2:], num_classes, width or 32)
        try:
            network.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError, OSError):
            pass  # damaged: trained again below
        else:
            return network.to(device, memory_format=network.layout).eval()  # type: ignore[call-overload]
    network = train_classifier(samples_N, labels_N, num_classes, seed, **wanted, device=device)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, temporary)
    os.replace(temporary, path)
    return network


def classifier_key(
    samples_N: Tensor, labels_N: Tensor, num_classes: int, seed: int, width: int | None, epochs: int | None
) -> str:
    """A name for all that decides the classifier. Of the samples, their shape and each one's mean are hashed."""
    facts = repr((RECIPE, tuple(samples_N.shape), num_classes, seed, width, epochs)).encode()
    means = samples_N.float().mean(tuple(range(1, samples_N.dim()))).cpu().numpy().round(4).tobytes()
    return hashlib.sha256(facts + labels_N.long().cpu().numpy().tobytes() + means).hexdigest()[:20]
