"""torch.compile, block by block: one block is compiled, all that look like it share the result."""

from __future__ import annotations

from torch import nn

from ddcap.model.image_encoder import ImageEncoder
from ddcap.model.recompute import RecomputingBlocks


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks of the denoiser (or decoder) and of a CLIP, in place; weights keep their names.

    Captions are unequally long, so that the denoiser's shapes change from step to step: it is compiled for
    all of them at once. Pictures are not.
    """
    for module in model.modules():
        if isinstance(module, RecomputingBlocks):
            for block in module.blocks:
                block.compile(dynamic=True)
        elif isinstance(module, ImageEncoder):
            for layer in module.layers:
                layer.compile()
