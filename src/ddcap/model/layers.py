"""Layers of a stack of blocks: attention, timestep, length head, recomputing.

Shapes: B captions, H heads, Q queries, K keys, L caption positions, N packed positions of all captions, D
width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddcap.model.encoders import ImageEncoder
from ddcap.model.packing import Packing

# Scaled dot-product attention and the split into heads.


def attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, dropout: float = 0.0
) -> Tensor:
    """softmax(Q K' / sqrt(D/H)) V.

    In training on the CPU it is written out: torch's fused kernel, made for long rows, takes twice as long
    for a caption's few positions, and ten times in the backward pass. Without a gradient the fused one is
    taken: it gives equal rows of a batch equal results to the last bit, which products of whole batches do
    not.

    Args:
        query: (B, H, Q, D/H).
        key: (B, H, K, D/H).
        value: (B, H, K, D/H).
        attn_mask: boolean, broadcast to (B, H, Q, K); every query has a key it may attend to. None: all.
        dropout: share of the attention weights set to 0.
    """
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, dropout_p=dropout)
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5  # (B, H, Q, K)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    weights = scores.softmax(dim=3)
    if dropout:
        weights = F.dropout(weights, dropout)
    return weights @ value


def split_heads(hidden: Tensor, heads: int) -> Tensor:
    """(B, L, D) to (B, H, L, D/H)."""
    batch, length, width = hidden.shape
    return hidden.view(batch, length, heads, width // heads).transpose(1, 2)


def join_heads(hidden: Tensor) -> Tensor:
    """(B, H, L, D/H) to (B, L, D)."""
    return hidden.transpose(1, 2).flatten(2)


# How the timestep enters the denoiser: a sinusoidal embedding, and layer norms that it scales and shifts.


class TimestepEmbedding(nn.Module):
    """Sinusoidal embedding of t / T * 8000, sines first."""

    frequencies: Tensor

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        half = width // 2
        steps_of_sine = torch.arange(
            half, device="cpu"
        )  # also in an outline: arithmetic without values is slow
        frequencies = torch.exp(steps_of_sine * -(math.log(10000) / max(half - 1, 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.steps = steps

    def forward(self, timestep: Tensor) -> Tensor:
        """(B,) steps to (B, D)."""
        # in this order: at thousands of radians, float32 rounding shows in the reference numbers
        angle = (timestep / self.steps * 8000).unsqueeze(1) * self.frequencies  # (B, D/2)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


ScaleShift = tuple[Tensor, Tensor]
"""Factor (1 + scale) and shift that a layer norm takes from the timestep, each (B, 1, D)."""


class AdaptiveLayerNorm(nn.Module):
    """Adaptive layer norm (adaLN): no affine of its own; scale and shift come from the timestep."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)
        self.width = width

    def forward(self, hidden: Tensor, time: Tensor | ScaleShift, packing: Packing | None = None) -> Tensor:
        """Norm, scale and shift.

        Args:
            hidden: (B, L, D), or (N, D) packed.
            time: (B, D) of the timestep, already through SiLU; or factor and shift, when they are known.
            packing: of the real positions.
        """
        if isinstance(time, tuple):
            factor, shift = time
        else:
            both = self.linear(time)  # (B, 2 D)
            both = both.unsqueeze(1) if packing is None else packing.spread(both)
            scale, shift = both.chunk(2, dim=-1)
            factor = 1 + scale
        return F.layer_norm(hidden, (self.width,)) * factor + shift


class PlainLayerNorm(nn.LayerNorm):
    """A layer norm in place of an adaptive one: for a model without a timestep."""

    def forward(self, hidden: Tensor, time: None = None, packing: Packing | None = None) -> Tensor:  # noqa: ARG002
        """`hidden` in any shape (..., D); the rest is not read."""
        return super().forward(hidden)


# Special design 1: the caption's length from the image's summary.


class TanhMLP(nn.Sequential):
    """Two linear layers with a tanh between: the shape of the release's image projection and length head."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


class LengthHead(nn.Module):
    """Summary (B, S) to length logits (B, max_length); class k means k + 1 tokens, end token included."""

    def __init__(self, summary_width: int, hidden: int, max_length: int) -> None:
        super().__init__()
        self.mlp = TanhMLP(summary_width, hidden, max_length)

    def forward(self, summary: Tensor) -> Tensor:
        """Logits (B, max_length) of `summary` (B, S)."""
        logits: Tensor = self.mlp(summary)
        return logits


# Gradient checkpointing: keep a block's input only, and compute the block again for its gradient. Source:
# Chen et al. 2016, "Training deep nets with sublinear memory cost". Costs about a third more time.


class RecomputingBlocks(nn.Module):
    """A stack of blocks that can be told to recompute.

    Attributes:
        blocks: the stack.
        recomputes: whether a block that trains is computed again in the backward pass.
    """

    blocks: nn.ModuleList
    recomputes = False

    def run_block(self, block: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        """`block(*arguments, **keywords)`, with the same dropout if it is computed twice."""
        if self.recomputes and self.training and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False, **keywords)
        return block(*arguments, **keywords)


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
