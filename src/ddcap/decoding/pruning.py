"""Pruning: of an image's candidates those that are unlikely to win are dropped while they are decoded.

It saves what their other steps would cost. They are compared as finished captions are, with what the last
step predicted in place of each MASK. Not in the paper.

Shapes: I images, B captions (B = I * K, grouped by image), L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ddcap.arrays import Array, to_host


class Pruning:
    """Says which candidates go on.

    Args:
        plan: how many candidates of each image go on after the first step, the second, and so on; then the
            last number holds.
        captions: B.
        per_image: K.
        score: of captions, from tokens (B, L) and confidences (B, L), to (B,).
        wanted: captions of each image to be finished. If these are more than go on, all are finished, so
            that dropped ones are only known as such.

    Attributes:
        survives: (B,) True for captions that go on.
    """

    def __init__(
        self,
        plan: Sequence[int],
        captions: int,
        per_image: int,
        score: Callable[[Array, Array], Array],
        wanted: int = 1,
    ) -> None:
        self.plan, self.per_image, self.score = plan, per_image, score
        self.saves = wanted <= min(plan)
        self.survives = np.ones(captions, dtype=bool)
        self._steps = 0

    @property
    def survivors(self) -> int:
        """The candidates of each image that go on."""
        return int(self.survives[: self.per_image].sum())

    @property
    def rows(self) -> np.ndarray:
        """(I * k,) the captions that go on."""
        return np.flatnonzero(self.survives)

    @property
    def is_decoded(self) -> np.ndarray:
        """(B,) False for captions of which no further word is decoded."""
        return self.survives if self.saves else np.ones_like(self.survives)

    def step(self, predicted: Callable[[], tuple[Array, Array]]) -> None:
        """After a step, drop those that are behind; of equals, the first stay.

        Args:
            predicted: asked only where some are dropped; gives tokens (B, L), committed, or predicted where
                MASK is left, and the probability (B, L) of each when it was committed, or is now.
        """
        left = self.plan[self._steps] if self._steps < len(self.plan) else self.survivors
        self._steps += 1
        if left >= self.survivors:
            return
        scores = np.where(self.survives, to_host(self.score(*predicted())), -np.inf)
        scores = scores.reshape(-1, self.per_image)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :left]
        survives = np.zeros(scores.shape, dtype=bool)
        np.put_along_axis(survives, best, values=True, axis=1)
        self.survives = survives.reshape(-1)
