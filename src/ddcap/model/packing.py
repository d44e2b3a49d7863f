"""Packing: linear layers, norms and dropout are computed for those caption positions only that are wanted.

Captions of a batch are unequally long: in training a third of all positions is padding. While a caption is
decoded, nobody attends to MASK tokens, so those that are not to be predicted need not be computed either.
Only attention needs the rectangle (B, L); between two attentions the positions lie packed in one row (N, D).

Shapes: B captions, L caption positions, N packed ones of all captions, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Packing:
    """The real positions of a padded batch, for training.

    Args:
        is_padding: (B, L) boolean.
    """

    def __init__(self, is_padding: Tensor) -> None:
        self.shape: tuple[int, ...] = is_padding.shape
        self.rows = (~is_padding).flatten().nonzero().squeeze(1)  # (N,)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) to (N, ...)."""
        packed: Tensor = _Pack.apply(padded.flatten(0, 1), self.rows)
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """(N, ...) to (B, L, ...), 0 in the padding."""
        padded: Tensor = _Unpack.apply(packed, self.rows, math.prod(self.shape))
        return padded.unflatten(0, self.shape)

    def spread(self, per_caption: Tensor) -> Tensor:
        """(B, ...) to (N, ...): every position gets its caption's row."""
        return self.pack(per_caption.unsqueeze(1).expand(-1, self.shape[1], *per_caption.shape[1:]))


class ChosenPacking(Packing):
    """Positions that were chosen, for decoding: it computes no gradient, and can be exported as a graph.

    Args:
        rows: (N,) the positions, at least one, as places in the flat (B * L,), in ascending order.
        captions: B.
        length: L.
    """

    def __init__(self, rows: Tensor, captions: int, length: int) -> None:
        self.rows, self.shape = rows, (captions, length)
        numbers = torch.zeros(captions * length, dtype=torch.long, device=rows.device)
        self.numbers = numbers.scatter(0, rows, torch.arange(rows.shape[0], device=rows.device))  # of places

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) to (N, ...)."""
        return padded.flatten(0, 1).index_select(0, self.rows)

    def unpack(self, packed: Tensor) -> Tensor:
        """(N, ...) to (B, L, ...); where no position was chosen is that of any other."""
        return packed.index_select(0, self.numbers).view(*self.shape, *packed.shape[1:])

    def numbers_of(self, other: ChosenPacking) -> Tensor:
        """Numbers (N',), among these positions, of those of `other`, which are some of them."""
        return self.numbers.index_select(0, other.rows)


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
