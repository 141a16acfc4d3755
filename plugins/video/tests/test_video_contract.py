"""The modality contract for video: joint pyramids with and without a separate first frame, and clip pyramids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nextscale.grid import GridTokenizer
from nextscale.testing import ModalityContract
from nextscale.testing.helpers import randomize
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale_video.config import VideoDataConfig, VideoTokenizerConfig
from nextscale_video.modality import VideoModality


class VideoContract(ModalityContract):
    frames = 5
    size = (8, 8)
    channels = 1
    examples, few_examples = 10, 5
    settings: dict[str, Any] = {}

    source: str

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def videos(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        shape = (12, cls.frames + 2, *cls.size, cls.channels)
        path = tmp_path_factory.mktemp("videos") / "videos.npz"
        np.savez(path, video=np.random.default_rng(0).integers(0, 256, shape, np.uint8), label=np.arange(12) % 3)
        cls.source = str(path)

    def build_modality(self) -> VideoModality:
        return VideoModality()

    def data_config(self) -> VideoDataConfig:
        return VideoDataConfig(source=self.source, frames=self.frames, flip=True, validation=0.25)

    def tokenizer_config(self) -> VideoTokenizerConfig:
        settings = {
            "scales": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
            "channels": 4,
            "width": 4,
            "multipliers": (1, 1, 2),
            "blocks": 1,
            "quantizer": {"codes": 13, "phi_count": 2, "revive_below": 0.1, "scale_dropout": 0.5},
            "adversarial": {"weight": 0.1, "width": 4, "layers": 1},
            "temporal": 0.5,
            "shortcut": True,
        }
        return VideoTokenizerConfig.model_validate({**settings, **self.settings})

    def build_tokenizers(self) -> list[MultiscaleTokenizer]:
        tokenizers = super().build_tokenizers()
        for tokenizer in tokenizers:
            assert isinstance(tokenizer, GridTokenizer)
            randomize(tokenizer, 0)
            tokenizer.pyramid.quantizer.codebook.detach().normal_(generator=torch.Generator().manual_seed(0))
        return tokenizers

    def check_samples(self, samples: Tensor, num_samples: int) -> None:
        assert samples.shape[:2] == (num_samples, self.channels) and samples.dtype == torch.float32


class TestFirstFrameAlone(VideoContract):
    examples = 50


class TestPlainFrames(VideoContract):
    frames = 8
    size = (8, 12)
    channels = 3
    settings = {"first_alone": False, "attention": False, "shortcut": False}


class TestClipPyramids(VideoContract):
    frames = 9
    settings = {"clips": (1, 2), "quantizer": {"codes": 13, "update": "ema", "phi": "scale"}}


class TestOddSize(VideoContract):
    size = (9, 11)
    settings = {"time_strides": (1, 1), "scales": ((1, 1, 1), (2, 2, 2)), "clips": (2, 3), "carry": "state"}


class TestTokenByToken(VideoContract):
    on_grid = False  # the schedule of single tokens has no grid
    settings = {"order": "morton"}
