"""Weights, gradients and optimizer spread over the processes (FSDP2), for models too large to be on each.

What leaves a training (checkpoints, the best model) is whole, so that it does not depend on how it was made.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ddcap.model.image_encoder import ImageEncoder
from ddcap.model.kinds import CaptioningModel
from ddcap.model.recompute import RecomputingBlocks


def shard(root: nn.Module, model: CaptioningModel, mesh: DeviceMesh) -> None:
    """Spread `model` over the processes of `mesh`, in place; only `root`, which holds it, may be called then.

    Every block is a group that is gathered while it computes. So is every projection of the image to keys and
    values, which is computed ahead of its block; all else stays gathered from forward to backward.
    """
    # that of the keys and values does; nothing here changes it in place, which is what the warning is about
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    for (
        parameter
    ) in model.parameters():  # EfficientNet's are laid out with channels last, which FSDP2 refuses
        parameter.data = parameter.data.contiguous()
    for module in model.modules():
        if isinstance(module, RecomputingBlocks):
            for block in module.blocks:
                fully_shard(block.cross_attention.key_value, mesh=mesh)  # type: ignore[union-attr, arg-type]
                fully_shard(block, mesh=mesh)
        elif isinstance(module, ImageEncoder):
            for layer in module.layers:
                fully_shard(layer, mesh=mesh)
    fully_shard(root, mesh=mesh)


def exchange_gradients(root: nn.Module, enabled: bool) -> None:
    """Whether the next backward pass shares its gradients with the other processes, or keeps them."""
    assert isinstance(root, FSDPModule)
    root.set_requires_gradient_sync(enabled)


def gather(state: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Whole tensors from spread ones, on the CPU. All have to ask; one without `keep` gets nothing."""
    whole = {}
    for name, value in state.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            whole[name] = full.detach().cpu()
    return whole


def gather_optimizer(state: dict[str, Any], *, keep: bool = True) -> dict[str, Any]:
    """An optimizer's state dict with whole tensors; see `gather`."""
    whole = {key: gather(values, keep=keep) for key, values in state["state"].items()}
    return {**state, "state": whole}


def scatter_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state dict with whole tensors to one with this process's shares of them."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def share(value: Any, parameter: Tensor) -> Any:
        if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
            return value  # the count of steps is a scalar
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)

    shared = {
        key: {name: share(value, parameters[key]) for name, value in values.items()}
        for key, values in state["state"].items()
    }
    return {**state, "state": shared}
