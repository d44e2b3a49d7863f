"""Padding left out: linear layers, norms and dropout are computed for real caption positions only.

Captions of a batch are unequally long, and in training a third of all positions is padding. Only attention
needs the rectangle (B, L); between two attentions the real positions lie packed in one row (N, D).

Shapes: B captions, L positions, N real positions of all captions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Packing:
    """Where the real positions of a padded batch are.

    Args:
        is_padding: (B, L) boolean.
    """

    def __init__(self, is_padding: Tensor) -> None:
        self.shape = is_padding.shape
        self.rows = (~is_padding).flatten().nonzero().squeeze(1)  # (N,)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) to (N, ...)."""
        packed: Tensor = _Pack.apply(padded.flatten(0, 1), self.rows)
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """(N, ...) to (B, L, ...), 0 in the padding."""
        padded: Tensor = _Unpack.apply(packed, self.rows, self.shape.numel())
        return padded.unflatten(0, self.shape)

    def spread(self, per_caption: Tensor) -> Tensor:
        """(B, ...) to (N, ...): every position gets its caption's row."""
        return self.pack(per_caption.unsqueeze(1).expand(-1, self.shape[1], *per_caption.shape[1:]))


class _Pack(torch.autograd.Function):
    """Rows chosen by index. No row twice, so the gradient is a copy; torch's own adds, one row at a time."""

    @staticmethod
    def forward(context: Any, values: Tensor, rows: Tensor) -> Tensor:
        context.save_for_backward(rows)
        context.size = len(values)
        return values.index_select(0, rows)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _scatter(gradients[0], context.saved_tensors[0], context.size), None


class _Unpack(torch.autograd.Function):
    """The transpose of `_Pack`."""

    @staticmethod
    def forward(context: Any, values: Tensor, rows: Tensor, size: int) -> Tensor:
        context.save_for_backward(rows)
        return _scatter(values, rows, size)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0].index_select(0, context.saved_tensors[0]), None, None


def _scatter(values: Tensor, rows: Tensor, size: int) -> Tensor:
    return values.new_zeros(size, *values.shape[1:]).index_copy_(0, rows, values)
