"""Gradient checkpointing: keep a block's input only, and compute the block again for its gradient.

Source: Chen et al. 2016, "Training deep nets with sublinear memory cost". Costs about a third more time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ddcap.model.image_encoder import ImageEncoder


class RecomputingBlocks(nn.Module):
    """A stack of blocks that can be told to recompute.

    Attributes:
        blocks: the stack.
        recomputes: whether a block that trains is computed again in the backward pass.
    """

    blocks: nn.ModuleList
    recomputes = False

    def run_block(self, block: nn.Module, *arguments: Any) -> Any:
        """`block(*arguments)`, with the same dropout if it is computed twice."""
        if self.recomputes and self.training and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)


def recompute_blocks(model: nn.Module) -> None:
    """Switch it on in every stack of `model`, and in a CLIP that trains."""
    for module in model.modules():
        if isinstance(module, RecomputingBlocks):
            module.recomputes = True
        elif isinstance(module, ImageEncoder) and any(p.requires_grad for p in module.parameters()):
            for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
                enable = getattr(module.network, name, None)  # the second name in older transformers
                if enable is not None:
                    enable({"use_reentrant": False})
                    break
