"""The difference between two rows, over the images and the seeds that it was measured with.

A hierarchical (two-level) bootstrap. Upper level: the images are resampled, the same ones for both rows,
since both rows captioned them. Lower level: the seeds of each row. Resampling three seeds is too narrow in
two ways: the variance of a resampled mean is (n - 1) / n of what it should be, and its tails are those of a
normal distribution although the spread of three numbers says little about their true spread. So the lower
level is drawn from Student's t, scaled by what the seeds differ by, with Satterthwaite's (1946) degrees of
freedom where each row has seeds of its own. Where both rows are decodings of the same trainings, what is
drawn is the difference that each training gives.

What is particular to one image and one seed (their interaction) is in both levels, and would count twice;
the images' level is narrowed by it, as estimated from the two-way layout.

With three seeds a row, an interval of 95 % held the true difference in 94 to 97 % of simulated comparisons,
whether images, seeds or their interaction mattered most; resampled seeds alone would hold it in fewer than
85 % (tests/experiments/test_difference.py). Seeds of two rows that share their number count as independent.
A family of many comparisons settles little from three seeds unless the seeds agree closely.

Shapes: S seeds, I images, D draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddcap.evaluation.metrics import SAMPLES, bootstrap_interval

_Scores = NDArray[np.float64]
_OF_SEEDS = 50  # draws of the seeds for each draw of the images: p is told to 0.00002


def compare_rows(
    better: Mapping[int, Sequence[float]],
    worse: Mapping[int, Sequence[float]],
    *,
    same_trainings: bool = False,
) -> dict[str, Any]:
    """The difference of two rows' means over seeds, and how certain it is.

    Args:
        better: seed to one row's score of every image.
        worse: seed to the other's, of the same images.
        same_trainings: both rows are decodings of the same trainings, seed by seed.

    Returns:
        "difference"; "interval_95", over images alone; "interval_95_seeds", over both, and "p", two-sided,
        both None if a row has one seed; "per_seed", the difference from each seed that both have.
    """
    shared = [seed for seed in better if seed in worse]
    if same_trainings:
        better, worse = ({seed: row[seed] for seed in shared} for row in (better, worse))
    ones, others = (np.asarray(list(row.values()), dtype=np.float64) for row in (better, worse))  # (S, I)
    paired = ones.mean(axis=0) - others.mean(axis=0)  # (I,)
    found: dict[str, Any] = {
        "difference": float(paired.mean()),
        "interval_95": list(bootstrap_interval(paired.tolist())),
        "interval_95_seeds": None,
        "p": None,
        "per_seed": {str(seed): float(np.mean(better[seed]) - np.mean(worse[seed])) for seed in shared},
        "same_trainings": same_trainings,
    }
    samples = [ones - others] if same_trainings else [ones, others]
    if min(map(len, samples)) > 1:
        drawn = _draw(paired, samples)
        found["interval_95_seeds"] = np.quantile(drawn, [0.025, 0.975]).tolist()
        beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        found["p"] = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in the same order.

    Rejecting what is under 0.05 then makes one or more false discoveries in at most 5 % of all families of
    comparisons, however they depend on each other (Holm 1979).
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def _draw(paired: _Scores, samples: Sequence[_Scores]) -> _Scores:
    """(D,) differences, had images and seeds been others.

    Args:
        paired: (I,) the difference on each image, means over seeds.
        samples: one or two of (S, I), seeds that are independent of each other.
    """
    generator = np.random.default_rng(0)
    images = len(paired)
    resampled = paired[generator.integers(images, size=(SAMPLES, images))].mean(axis=1)
    of_images = float(paired.var(ddof=1)) / images
    twice = sum(_interaction(rows) / (len(rows) * images) for rows in samples)
    kept = math.sqrt(max(0.0, 1 - twice / of_images)) if of_images else 0.0
    parts = [(float(rows.mean(axis=1).var(ddof=1)) / len(rows), len(rows) - 1) for rows in samples]
    of_seeds = sum(part for part, _ in parts)
    uncertainty = sum(part**2 / freedom for part, freedom in parts)
    mean = float(paired.mean())
    drawn = np.repeat(mean + kept * (resampled - mean), _OF_SEEDS)
    if uncertainty:
        student = generator.standard_t(of_seeds**2 / uncertainty, len(drawn))
        drawn += math.sqrt(of_seeds) * student
    return drawn


def _interaction(rows: _Scores) -> float:
    """Variance that neither the seed nor the image explains: the residual mean square of (S, I) scores."""
    seeds, images = rows.shape
    residual = rows - rows.mean(axis=0) - rows.mean(axis=1, keepdims=True) + rows.mean()
    return float((residual**2).sum()) / ((seeds - 1) * (images - 1)) if images > 1 else 0.0
