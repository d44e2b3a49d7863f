"""Scaled dot-product attention and the split into heads.

Shapes: B batch, H heads, Q queries, K keys, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    query: Tensor, key: Tensor, value: Tensor, may_attend: Tensor | None = None, *, dropout: float = 0.0
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
        may_attend: boolean, broadcast to (B, H, Q, K); every query has a key it may attend to. None: all.
        dropout: share of the attention weights set to 0.
    """
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=may_attend, dropout_p=dropout)
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5  # (B, H, Q, K)
    if may_attend is not None:
        scores = scores.masked_fill(~may_attend, -torch.inf)
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
