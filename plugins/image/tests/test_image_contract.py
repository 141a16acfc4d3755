"""The modality contract for the image plugin, on square, oblong and odd-sized images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from nextscale.testing import ModalityContract
from nextscale.testing.helpers import randomize
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale_image.config import ImageDataConfig, ImageTokenizerConfig
from nextscale_image.modality import ImageModality


class ImageContract(ModalityContract):
    size: tuple[int, int]
    channels = 3
    examples, few_examples = 10, 5

    source: str

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def images(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        height, width = cls.size
        pixels = np.random.default_rng(0).integers(0, 256, (24, height + 2, width + 3, cls.channels), np.uint8)
        path = tmp_path_factory.mktemp("images") / "images.npz"
        np.savez(path, x=pixels, y=np.arange(24) % 3)
        cls.source = str(path)

    def build_modality(self) -> ImageModality:
        return ImageModality()

    def data_config(self) -> ImageDataConfig:
        return ImageDataConfig(source=self.source, crop=self.size, flip=True)

    def tokenizer_config(self) -> ImageTokenizerConfig:
        return ImageTokenizerConfig.model_validate(
            {
                "scales": (1, 2, 4),
                "channels": 4,
                "width": 4,
                "multipliers": (1, 1, 2),
                "blocks": 1,
                "quantizer": {"codes": 13, "phi_count": 2, "revive_below": 0.1, "scale_dropout": 0.5},
                "adversarial": {"weight": 0.1, "width": 4, "layers": 1},
            }
        )

    def tokenizer_configs(self) -> list[ImageTokenizerConfig]:
        config = self.tokenizer_config()
        ema = {"update": "ema", "distance": "cosine", "phi": "scale", "upsample": "linear"}
        return [config, config.model_copy(update={"quantizer": config.quantizer.model_copy(update=ema)})]

    def build_tokenizers(self) -> list[MultiscaleTokenizer]:
        tokenizers = super().build_tokenizers()
        for tokenizer in tokenizers:
            randomize(tokenizer, 0)
            tokenizer.pyramid.quantizer.codebook.detach().normal_(generator=torch.Generator().manual_seed(0))
        return tokenizers

    def check_samples(self, samples: Tensor, num_samples: int) -> None:
        assert samples.shape[:2] == (num_samples, self.channels) and samples.dtype == torch.float32


class TestSquareImages(ImageContract):
    size = (16, 16)
    channels = 1
    examples, few_examples = 50, 15


class TestOblongImages(ImageContract):
    size = (24, 32)


class TestOddImages(ImageContract):
    size = (27, 31)


class TestImagesTokenByToken(ImageContract):
    size = (12, 16)
    on_grid = False  # the schedule of single tokens has no grid

    def tokenizer_config(self) -> ImageTokenizerConfig:
        return super().tokenizer_config().model_copy(update={"order": "spiral", "scales": (2, 2)})
