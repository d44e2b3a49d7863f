"""Cross-entropy of a linear layer's logits, computed some rows at a time: all of them never exist at once.

With 50,257 words the logits of a batch, their softmax and its gradient are most of what a step needs memory
for. Here each chunk's gradient is computed with its loss. (torch's own function of this name, as of 2.13,
takes two to ten times as long on a CPU and rounds the loss to bfloat16.)

Shapes: N rows, D width, V words.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LOGITS_AT_ONCE = 1 << 24  # 64 MiB in float32: large products, small memory
_WORDS_AT_ONCE = 1 << 13


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean over N of -log softmax(W h)[target], like `F.cross_entropy(F.linear(hidden, weight), target)`.

    Under autocast the products are computed in its precision, all else in float32. Backward works once.

    Args:
        hidden: (N, D).
        weight: (V, D).
        target: (N,).
        label_smoothing: share of the target spread over all words.
    """
    if not torch.is_grad_enabled():
        logits = F.linear(hidden, weight).float()
        return F.cross_entropy(logits, target, label_smoothing=label_smoothing)
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, target, label_smoothing)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, target: Tensor, smoothing: float) -> Tensor:
        kind, words = hidden.device.type, len(weight)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        total = torch.zeros((), device=hidden.device)
        with torch.autocast(kind, enabled=False):
            rows, matrix = hidden.to(dtype), weight.to(dtype)
            rows_gradient = torch.empty_like(rows)
            weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
            size = max(1, _LOGITS_AT_ONCE // words)
            for some, wanted, gradient in zip(
                rows.split(size), target.unsqueeze(1).split(size), rows_gradient.split(size), strict=True
            ):
                logits = F.linear(some, matrix).float()  # (n, V)
                total += logits.logsumexp(dim=1).sum() - (1 - smoothing) * logits.gather(1, wanted).sum()
                if smoothing:
                    total -= smoothing * logits.mean(dim=1).sum()
                torch.softmax(logits, dim=1, out=logits)  # from here on the loss's gradient in the logits
                logits -= smoothing / words
                logits.scatter_add_(1, wanted, torch.full_like(wanted, smoothing - 1, dtype=logits.dtype))
                logits = logits.div_(len(rows)).to(dtype)
                torch.mm(logits, matrix, out=gradient)
                for part, columns in zip(
                    weight_gradient.split(_WORDS_AT_ONCE), logits.split(_WORDS_AT_ONCE, dim=1), strict=True
                ):
                    part += columns.T @ some  # a product of all words would be as large as the weight again
        context.save_for_backward(rows_gradient.to(hidden.dtype), weight_gradient.to(weight.dtype))
        return total / len(rows)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, weight = context.saved_tensors
        return rows.mul_(gradients[0]), weight.mul_(gradients[0]), None, None
