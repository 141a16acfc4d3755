"""The independent classifier for samples on a grid: a small convolutional network trained on the real training split.

It judges drawn samples in two ways: by the share that it assigns to the requested class, and by distances between its
penultimate features. It is trained on no drawn samples and shares nothing with the model that it judges.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import CheckpointError, DataError, NextscaleWarning, TrainingError
from nextscale.storage.files import load_tensors, save_tensors_atomic, tensor_metadata

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
# Twice as fast as the default layout on CPUs.
_LAYOUTS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
FEATURES = 128
_METADATA = "nextscale"
RECIPE = 1
"""Part of the cache's key. Raise it with every change to the network or its training."""


class Classifier(nn.Module):
    """Blocks of two convolutions and a halving, then two linear layers.

    Takes samples B C *grid in [-1, 1] of the size it was built for; returns logits, B num_classes.

    Args:
        channels, size: channels and grid of the samples.
        num_classes: number of classes.
        width: channels of the first block; each later one doubles them.
    """

    def __init__(self, channels: int, size: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__()
        self.layout, axes = _LAYOUTS[len(size)], len(size)
        # From 16 places per side on, the first convolution halves too: full resolution would take most of the time.
        stride = 2 if min(size) >= 16 else 1
        sides = [_halved(side) if stride == 2 else side for side in size]
        outputs = width
        blocks: list[nn.Module] = [_convolution(axes, channels, width, 5 if stride == 2 else 3, stride)]
        while len(blocks) < 5 or min(sides) > 4:  # at least two blocks; 2 to 4 places per side remain
            if len(blocks) > 1:
                blocks.append(_convolution(axes, outputs, 2 * outputs))
                outputs *= 2
            blocks += [_convolution(axes, outputs, outputs), _POOLS[axes](2, ceil_mode=True)]
            sides = [_halved(side) for side in sides]
        self.blocks = nn.Sequential(*blocks)
        self.hidden = nn.Linear(outputs * math.prod(sides), FEATURES)
        self.output = nn.Linear(FEATURES, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """B FEATURES: the penultimate activations, in which Fréchet and kernel distances are measured."""
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
    """Train the independent classifier, with shifts by up to one place as its only augmentation.

    The result depends only on the arguments and, through rounding, on the device and its number of threads.

    Args:
        samples_N: N C *grid in [-1, 1].
        labels_N: integers below ``num_classes``.
        width: channels of the first block; None means 32.
        epochs: None takes enough epochs to show about 420,000 samples, at most 20 (60,000 images of 28 x 28: 7).

    Raises:
        DataError: no samples, or labels that do not match them.
    """
    if len(samples_N) == 0 or len(samples_N) != len(labels_N):
        raise DataError(f"a classifier needs one label per sample: {len(samples_N)} samples, {len(labels_N)} labels")
    if int(labels_N.min()) < 0 or int(labels_N.max()) >= num_classes:
        raise DataError(f"labels must be 0 to {num_classes - 1}, got {int(labels_N.min())} to {int(labels_N.max())}")
    n, channels, *size = samples_N.shape
    batch_size = min(n, 64 if n < 10_000 else 128)
    steps_per_epoch = n // batch_size
    epochs = epochs or max(1, min(20, round(420_000 / n)))
    device = torch.device(device)
    # Initialisation, order, shifts and dropout draw from the global generators, whose state is restored.
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
            # An incomplete last batch is left out: batch norm would be noisy on it. Each epoch has a new order.
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
    """Shift each sample by -1, 0 or 1 place along each axis, repeating edges. Draws from the global generator."""
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
    """``train_classifier`` with a cache of its weights in ``folder`` (None caches nothing).

    The file name is a hash of everything that determines the weights: the samples, the labels, the seed and the
    recipe. The file holds this hash and a checksum of the weights. One that is damaged, or has no checksum, is replaced
    with a warning; a folder that cannot be written to gives a warning too.
    """
    wanted = {"width": width, "epochs": epochs}
    if folder is None:
        return train_classifier(samples_N, labels_N, num_classes, seed, **wanted, device=device)
    key = classifier_key(samples_N, labels_N, num_classes, seed, **wanted)
    path = Path(folder) / f"classifier-{key}.safetensors"
    if path.exists():
        network = Classifier(samples_N.shape[1], samples_N.shape[2:], num_classes, width or 32)
        try:
            _fill_from_cache(network, path, key)
        except CheckpointError as error:
            warnings.warn(f"{error}: the classifier is trained again", NextscaleWarning, stacklevel=2)
        else:
            return network.to(device, memory_format=network.layout).eval()  # type: ignore[call-overload]
    network = train_classifier(samples_N, labels_N, num_classes, seed, **wanted, device=device)
    weights = {name: value.cpu() for name, value in network.state_dict().items()}
    try:
        save_tensors_atomic(path, weights, {_METADATA: _seal(key, weights)})
    except TrainingError as error:
        warnings.warn(f"{error}, so the classifier will be trained again next time", NextscaleWarning, stacklevel=2)
    return network


def _fill_from_cache(network: Classifier, path: Path, key: str) -> None:
    """Raises CheckpointError if the file is not the sound cache of this very classifier."""
    sealed, weights = tensor_metadata(path).get(_METADATA), load_tensors(path)
    if sealed is None:
        raise CheckpointError(f"{path} has no checksum")
    if sealed != _seal(key, weights):
        raise CheckpointError(f"{path} is damaged (its checksum differs)")
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise CheckpointError(f"{path} is of another classifier") from None


def _seal(key: str, weights: Mapping[str, Tensor]) -> str:
    """A checksum of the weights of the classifier ``key``."""
    hasher = hashlib.sha256(key.encode())
    for name, value in sorted(weights.items()):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hasher.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def classifier_key(
    samples_N: Tensor, labels_N: Tensor, num_classes: int, seed: int, width: int | None, epochs: int | None
) -> str:
    """A hash of everything that determines the classifier."""
    facts = (RECIPE, samples_N.dtype, tuple(samples_N.shape), num_classes, seed, width, epochs)
    hasher = hashlib.sha256(repr(facts).encode() + labels_N.long().cpu().numpy().tobytes())
    for part in samples_N.split(1024):  # a part at a time, because the bytes are a copy
        hasher.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()[:20]
