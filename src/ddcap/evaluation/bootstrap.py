"""How certain a score is: percentile bootstrap over images, for metrics that are a mean over images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SAMPLES = 2000


def bootstrap_interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Interval of the mean of `values` when images are drawn with replacement.

    Args:
        values: one score per image.
        level: share of the resampled means inside the interval.
        seed: of the resampling.

    Returns:
        Lower and upper end.
    """
    scores = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(scores), size=(SAMPLES, len(scores)))
    means = scores[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
