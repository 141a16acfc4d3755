"""What ``nextscale train --minutes`` proposes for clips."""

from __future__ import annotations

from typing import Any

import numpy as np

from nextscale.plugin import DataError, DataSplits, Proposal, grid_proposals, halvings, some_rows
from nextscale_video.config import VideoDataConfig
from nextscale_video.frames import read
from nextscale_video.readers import read_source

LARGEST = 64
"""Longest side of frames that a proposal trains on, in pixels. Larger ones need hours, or ``data.size``."""
LOOKED_AT = 20
"""Videos whose size is looked at."""
CLIPS = (2, 3)
"""Latent frames of the first clip pyramid, and of the others."""


def suit_videos(config: VideoDataConfig) -> dict[str, Any]:
    """``size``, if the user gave none and the videos differ in size or are larger than 64 px."""
    if config.size is not None or config.source == "moving-digits":
        return {}
    videos = read_source(config.source, config.limits)["train"].videos
    sizes = []
    for row in some_rows(len(videos), LOOKED_AT, 0):
        try:
            sizes.append(read(videos[int(row)], None, room=config.limits.memory_bytes).shape[1:3])
        except DataError:
            continue  # opening the data says what is wrong, or skips the video
    if not sizes or (len(set(sizes)) == 1 and max(sizes[0]) <= LARGEST):
        return {}
    return {"size": int(min(LARGEST, np.median([min(size) for size in sizes])))}


def propose_videos(data: DataSplits) -> list[Proposal]:
    """Clip pyramids of about 8 x 8 places per latent frame; each clip starts as the last latent frame before it."""
    steps = halvings(max(data.description["height"], data.description["width"]))
    sides = [-(-data.description[axis] // 2**steps) for axis in ("height", "width")]
    growing = [[1, *(min(step, side) for side in sides)] for step in (1, 2, 3, 4, 6)]
    scales = [*(scale for scale in growing if scale[1:] != sides), [1, *sides]]
    frames = data.description["frames"]
    halved, alone = _halvings_of_time(frames, steps)
    latent = -(-frames // 2**halved)
    tokenizer = {
        "scales": scales,
        "clips": CLIPS,
        "carry": "state",
        "first_alone": alone,
        "time_strides": [2] * halved + [1] * (steps - halved),
        "channels": 16,
        "width": 8,
        "multipliers": [1, 2, 4, 8, 8, 8, 8][: steps + 1],
        "blocks": 1,
        "attention": False,
        "shortcut": True,
        "temporal": 0.5,
        "quantizer": {
            "codes": 1024,
            "update": "ema",
            "phi": "scale",
            "revive_below": 0.05,
            "revive_every": 50,
        },
    }
    tokens = latent * sum(height * width for _, height, width in scales)
    sampling = {"guidance": 1.5 if data.conditions else 0.0}
    return grid_proposals(tokenizer, tokens, batch_size=8, share=0.5, settings={"sampling": sampling})


def _halvings_of_time(frames: int, steps: int) -> tuple[int, bool]:
    """How many times to halve the number of frames, twice at most, and whether the first frame is encoded alone."""
    for halved in range(min(2, steps), 0, -1):
        for alone in (True, False):
            if (frames - alone) % 2**halved == 0:
                return halved, alone
    return 0, True
