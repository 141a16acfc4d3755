"""Optimizer, learning rate, moving average and compilation."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from nextscale.config.sections import StageConfig
from nextscale.device import check_compiler
from nextscale.distributed import local
from nextscale.transformer.block import Block


def build_optimizer(model: nn.Module, config: StageConfig, lr: float) -> torch.optim.AdamW:
    """AdamW that decays only weight matrices, not biases, norms, embeddings, positions or learned scales."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    linear = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, linear)} - embeddings
    # With their names, under which a checkpoint stores the state of each.
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [(name, p) for name, p in trained if id(p) in matrices], "weight_decay": config.weight_decay},
        {"params": [(name, p) for name, p in trained if id(p) not in matrices], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, fused=True)


def compile_model(model: nn.Module) -> None:
    """Apply torch.compile to a transformer's blocks (which share their code), or else to the whole model.

    Raises:
        ConfigError: no compiler was found.
    """
    check_compiler(model)
    blocks: list[nn.Module] = [part for part in model.modules() if isinstance(part, Block)]
    # A tokenizer has no forward of its own, but its networks do.
    parts = blocks or (model.children() if type(model).forward is nn.Module.forward else [model])
    for part in parts:
        if type(part).forward is not nn.Module.forward:
            part.compile()


def as_written(compiled: bool) -> AbstractContextManager[None]:
    """Within the block, a compiled model runs as it is written. Batches of other sizes, and the scales of a sample,
    would each be compiled anew, which takes longer than to run them."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()  # it takes seconds to import


def lr_factor(step: int, config: StageConfig) -> float:
    """Learning rate at ``step`` relative to its peak: linear warm-up from 0.5%, then the schedule to ``final_lr``."""
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return 0.005 + 0.995 * step / warmup
    if config.schedule == "constant":
        return 1.0
    begin = cooldown_begins(config) if config.schedule == "trapezoid" else warmup
    progress = max(0, step - begin) / max(1, config.steps - 1 - begin)
    fall = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.final_lr + (1 - config.final_lr) * fall


def cooldown_begins(config: StageConfig) -> int:
    """With the trapezoid schedule, the first step of the cool-down."""
    return max(round(config.warmup * config.steps), config.steps - round(config.cooldown * config.steps))


class EMA:
    """An exponential moving average of a module's weights; buffers are copied. The decay grows over the first steps.

    ``copied`` is the module that holds the average, with the weights to begin with; by default a copy of ``model``.
    """

    def __init__(self, model: nn.Module, decay: float, copied: nn.Module | None = None) -> None:
        self.decay = decay
        self.model = (copy.deepcopy(model) if copied is None else copied).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged, current = ([local(p) for p in each.parameters()] for each in (self.model, model))
        torch._foreach_lerp_(averaged, current, 1 - decay)  # pyright: ignore
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
