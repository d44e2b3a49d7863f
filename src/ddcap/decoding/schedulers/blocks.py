"""Semi-autoregressive decoding: blocks of tokens from left to right, diffusion within each.

The model sees the whole caption at every step, MASK where later blocks are, so that words given anywhere
count. Source: block diffusion, Arriola et al. 2025; unlike there the attention stays bidirectional. Not in
the paper.

Shapes: B captions, B' of them running, L positions, K blocks, S steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddcap.arrays import Array, array_namespace, device, like, to_host
from ddcap.decoding.schedulers.best_first import (
    BestFirstPlan,
    BestFirstScheduler,
    plan_steps,
    timestep_for_mask_ratio,
)


class BlockScheduler(BestFirstScheduler):
    """Commit the surest tokens of the first block that has MASK positions.

    A caption's steps are shared out among its blocks by their MASK positions, at least one step to each.

    Args:
        diffusion_steps: T.
        mask_id: V.
        block: tokens of a block.
        settings: of `BestFirstScheduler`.
    """

    def __init__(self, diffusion_steps: int, mask_id: int, block: int, **settings: Any) -> None:
        super().__init__(diffusion_steps, mask_id, **settings)
        self.block = block

    def set_timesteps(self, num_inference_steps: int | None, sample: Array, lengths: Array) -> None:
        """See `Scheduler`."""
        is_mask = to_host(sample == self.mask_id)
        edges = np.arange(0, is_mask.shape[1], self.block)
        self._blocks = np.add.reduceat(is_mask, edges, axis=1, dtype=np.int64)  # (B, K) MASK positions
        plan = plan_blocks(self._blocks, to_host(lengths), self.diffusion_steps, num_inference_steps)
        self._begin(plan, self._blocks.sum(axis=1), sample)

    def _current(self) -> np.ndarray:
        """(B,) number of each caption's first block with MASK positions."""
        return (self._blocks > 0).argmax(axis=1)

    def _open(self, sample: Array, rows: np.ndarray) -> Array:
        """(B', L) True at MASK positions of the current block."""
        xp = array_namespace(sample)
        block = xp.arange(sample.shape[1], device=device(sample)) // self.block
        return (sample == self.mask_id) & (block == like(self._current()[rows], sample)[:, None])

    def _open_counts(self) -> np.ndarray:
        """(B,) MASK positions of the current block."""
        counts: np.ndarray = np.take_along_axis(self._blocks, self._current()[:, None], axis=1)[:, 0]
        return counts

    def _count(self, committed: np.ndarray) -> None:
        """Count a step that committed (B,) tokens."""
        self._blocks[np.arange(len(committed)), self._current()] -= committed
        super()._count(committed)


def plan_blocks(
    blanks: np.ndarray, lengths: np.ndarray, diffusion_steps: int, steps: int | None = None
) -> BestFirstPlan:
    """Plan each block by itself, one after the other.

    Args:
        blanks: (B, K) MASK positions of each block.
        lengths: (B,) tokens of each caption.
        diffusion_steps: T.
        steps: asked-for number of steps of a caption; None commits one position a step.
    """
    total = blanks.sum(axis=1)
    asked = total if steps is None else np.minimum(steps, total)
    edges = np.pad(blanks, ((0, 0), (1, 0))).cumsum(axis=1)  # (B, K + 1) MASK positions before each block
    done = edges * asked[:, None] // np.maximum(total, 1)[:, None]
    of_block = np.where(blanks > 0, np.maximum(np.diff(done, axis=1), 1), 0)  # (B, K) steps
    quotas = np.zeros((max(1, int(of_block.sum(axis=1).max())), len(blanks)), dtype=np.int64)
    for caption, (sizes, counts) in enumerate(zip(blanks, of_block, strict=True)):
        step = 0
        for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
            if count:
                one = plan_steps(np.array([size]), np.array([size]), diffusion_steps, count)
                quotas[step : step + count, caption] = one.quotas[:, 0]
                step += count
    before = total - np.cumsum(quotas, axis=0) + quotas  # (S, B) MASK positions before each step
    return BestFirstPlan(
        timestep_for_mask_ratio(before, lengths, diffusion_steps), quotas, lengths, diffusion_steps
    )
