"""How the timestep enters the denoiser: a sinusoidal embedding, and layer norms that it scales and shifts.

Shapes: B captions, L caption positions, N real positions of all captions, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcap.model.packing import Packing


class TimestepEmbedding(nn.Module):
    """Sinusoidal embedding of t / T * 8000, sines first."""

    frequencies: Tensor

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        half = width // 2
        frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / max(half - 1, 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.steps = steps

    def forward(self, timestep: Tensor) -> Tensor:
        """(B,) steps to (B, D)."""
        # in this order: at thousands of radians, float32 rounding shows in the reference numbers
        angle = (timestep / self.steps * 8000).unsqueeze(1) * self.frequencies  # (B, D/2)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class AdaptiveLayerNorm(nn.Module):
    """Layer norm without own affine; scale and shift come from the timestep."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)
        self.width = width

    def forward(self, hidden: Tensor, time: Tensor, packing: Packing | None = None) -> Tensor:
        """`hidden` (B, L, D), or (N, D) packed, and `time` (B, D), already through SiLU."""
        modulation = self.linear(time)  # (B, 2 D)
        modulation = modulation.unsqueeze(1) if packing is None else packing.spread(modulation)
        scale, shift = modulation.chunk(2, dim=-1)
        return F.layer_norm(hidden, (self.width,)) * (1 + scale) + shift
