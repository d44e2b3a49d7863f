"""Attention masks: the concentrated one of special design 2, and the causal one.

Shapes: B captions, L caption positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def self_attn_mask(is_mask: Tensor, is_padding: Tensor, *, concentrated: bool) -> Tensor:
    """Build the denoiser's self-attention mask, True where a row may attend to a column.

    MASK tokens carry no information, so nobody attends to them, except each to itself. Padding is never
    attended to, except by itself: a padded row must attend to something, and its output is read by nobody.

    Args:
        is_mask: (B, L) True at MASK tokens.
        is_padding: (B, L) True past the end of the caption.
        concentrated: False leaves out the rule about MASK tokens.

    Returns:
        (B, L, L) True where position (b, i) may attend to (b, j).
    """
    is_hidden = is_padding | is_mask if concentrated else is_padding
    itself = torch.eye(is_mask.shape[1], dtype=torch.bool, device=is_mask.device)
    return ~is_hidden.unsqueeze(1) | itself


def causal_mask(length: int, device: torch.device) -> Tensor:
    """Build the mask (L, L) by which a position attends to itself and to those before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
