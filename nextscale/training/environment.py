"""Record the environment and the data of a run, and seed the initialisation of weights."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from nextscale import distributed
from nextscale.data import DataSplits


def seed_everything(seed: int) -> None:
    """Seed the initialisation of weights; training itself draws only from ``Draws``."""
    torch.manual_seed(seed)


def describe_environment() -> dict[str, Any]:
    return {
        "nextscale": version("nextscale"),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processes": distributed.world_size(),
        "command": sys.argv,
    }


def describe_data(data: DataSplits) -> dict[str, Any]:
    """What ``data.json`` says: the number of samples per split, the conditions, and the description."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {
        "samples": {name: 0 if split is None else len(split) for name, split in splits.items()},
        "conditions": [spec.model_dump(mode="json") for spec in data.conditions],
        "description": data.description,
    }
