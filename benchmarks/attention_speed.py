"""Time attention in training on the CPU: `model/attention.py` against torch's fused kernel.

    python benchmarks/attention_speed.py

Prints, for the shapes of one training step of the default model, the median time of the fused kernel over
that of the written-out one, forward and backward. Ratios of one run, for a shared machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcap.model.layers import attend

HEADS, WIDTH, REPEATS = 6, 64, 15
SHAPES = {  # (rows, queries, keys)
    "self-attention, 160 captions of 11 tokens": (160, 11, 11),
    "cross-attention, 32 images, 5 captions each": (32, 55, 81),
    "self-attention, 960 half-finished captions": (960, 11, 11),
    "cross-attention, 32 images, 30 half-finished captions each": (32, 330, 81),
}


def time_once(attention: Callable[..., Tensor], parts: list[Tensor], mask: Tensor) -> tuple[float, float]:
    """Seconds forward and backward."""
    start = time.perf_counter()
    output = attention(*parts, mask)
    middle = time.perf_counter()
    output.sum().backward()
    return middle - start, time.perf_counter() - middle


def main() -> None:
    """Print the table."""
    print("| shape, bfloat16 | forward | backward |\n|---|---|---|")
    for name, (rows, queries, keys) in SHAPES.items():
        parts = [
            torch.randn(rows, HEADS, size, WIDTH, dtype=torch.bfloat16, requires_grad=True)
            for size in (queries, keys, keys)
        ]
        mask = torch.ones(rows, 1, queries, keys, dtype=torch.bool)
        times = [
            [time_once(attention, parts, mask) for attention in (F.scaled_dot_product_attention, attend)]
            for _ in range(REPEATS)
        ]
        forward, backward = (
            statistics.median(fused[part] / written[part] for fused, written in times) for part in (0, 1)
        )
        print(f"| {name} | {forward:.1f} | {backward:.1f} |")


if __name__ == "__main__":
    main()
