"""Weights, gradients and optimizer state spread over processes: torch's ``fully_shard`` (FSDP2), block by block.

PyTorch FSDP, https://arxiv.org/abs/2304.11277. Models without transformer blocks (tokenizers, discriminators) are small
and are copied to every process instead, as is everything with ``training.shard=none``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nextscale import distributed
from nextscale.config.sections import Shard
from nextscale.errors import ConfigError
from nextscale.objective import Objective
from nextscale.transformer.block import Block


def group_size(shard: Shard, processes: int) -> int:
    """The number of processes that share one copy of the weights; 1 means that each has its own.

    Raises:
        ConfigError: the processes do not split into groups of this size, or torch is too old.
    """
    size = {"none": 1, "full": processes}.get(str(shard)) or int(shard)
    if processes % size:
        fitting = ", ".join(str(n) for n in range(1, processes + 1) if processes % n == 0)
        raise ConfigError(
            f"training.shard={size} does not divide the number of processes, {processes}: set none, full, or one of "
            f"{fitting}"
        )
    if size > 1:
        _check_torch()
    return size


def _check_torch() -> None:
    """What is needed beyond torch 2.6: gradients averaged with any backend, and of parameters that some processes leave
    unused."""
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:
        FSDPModule: Any = None
    needed = ("set_force_sum_reduction_for_comms", "set_reduce_scatter_unused_params")
    if not all(hasattr(FSDPModule, name) for name in needed):
        raise ConfigError(
            f"training.shard needs a newer torch than {torch.__version__} (2.13 suffices): update it, or set "
            "training.shard=none"
        )


def has_blocks(model: nn.Module) -> bool:
    """Whether a model is of the kind that is sharded."""
    return any(isinstance(part, Block) for part in model.modules())


class ShardedModel:
    """The model of an objective, of which each process holds a part from now on: ``objective.model`` becomes a copy.

    The model that the objective had is left without weights. They are filled in while it is evaluated (``gathered``),
    and for good when training ends (``restore``).

    Args:
        objective: its forward computes the loss; it must not be used before.
        shard: as in ``training.shard``.
        device: where to train.
    """

    def __init__(self, objective: Objective[Any], shard: Shard, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        self.objective, self.plain = objective, objective.model
        processes = distributed.world_size()
        size = group_size(shard, processes)
        # Copies of the weights between groups, parts of them within one.
        mesh = init_device_mesh(device.type, (processes // size, size), mesh_dim_names=("replicate", "shard"))
        mesh = mesh if size < processes else mesh["shard"]
        objective.model = copy.deepcopy(self.plain)
        self._release()
        for part in objective.model.modules():
            if isinstance(part, Block):
                fully_shard(part, mesh=mesh)
        fully_shard(objective, mesh=mesh)
        for part in objective.modules():
            if isinstance(part, FSDPModule):
                # gloo cannot average: it would sum (https://github.com/pytorch/pytorch/issues/162338).
                part.set_force_sum_reduction_for_comms(device.type != "cuda")
        # Some parameters may stay unused in one process and not in another: a null that is never drawn.
        assert isinstance(objective, FSDPModule)
        objective.set_reduce_scatter_unused_params(True)

    def copied(self) -> nn.Module:
        """A module whose parameters are copies of this process's parts; it cannot be run."""
        module = copy.deepcopy(self.plain)
        module.load_state_dict({name: value.detach().clone() for name, value in self._state().items()}, assign=True)
        return module

    @contextmanager
    def gathered(self, source: nn.Module) -> Iterator[nn.Module]:
        """The model with the whole weights of ``source`` (its own, or those of a ``copied`` one), in every process.

        All processes must enter the block. What they do inside need not be the same.
        """
        self._fill(source)
        try:
            yield self.plain
        finally:
            self._release()

    def restore(self) -> nn.Module:
        """End the sharding: give the objective its model back, with whole weights, in every process."""
        self._fill(self.objective.model)
        self.objective.model = self.plain
        return self.plain

    def _state(self) -> dict[str, Tensor]:
        return self.objective.model.state_dict()

    @torch.no_grad()
    def _fill(self, source: nn.Module) -> None:
        whole = {name: distributed.whole(value.detach()).clone() for name, value in source.state_dict().items()}
        self.plain.load_state_dict(whole, assign=True)

    def _release(self) -> None:
        parameters = dict(self.plain.named_parameters(remove_duplicate=False))
        empty = {name: torch.empty_like(value, device="meta") for name, value in parameters.items()}
        self.plain.load_state_dict(empty, assign=True, strict=False)
