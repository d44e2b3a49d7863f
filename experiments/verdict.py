"""Does a difference between two rows hold on other pictures and from other seeds?

A row's score is a mean over pictures and over the seeds of its training, and both could have been others.
The variance of a difference is that over pictures, plus each row's variance over seeds divided by their
number. With few seeds the latter is itself uncertain, hence Student's t, with Satterthwaite's (1946) degrees
of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_NORMAL_95 = 1.96
_DRAWS = 200_000


def settle(results: dict[str, Any]) -> dict[str, Any]:
    """The same results, every claim with `interval_95_seeds` (or None) and its `verdict`.

    Made anew whenever results are read, so that those of an earlier version are judged alike.

    Args:
        results: what `ablate` wrote.
    """
    ciders = {
        name: [seed["CIDEr"] for seed in row["seeds"].values()] for name, row in results["rows"].items()
    }
    claims = []
    for claim in results["claims"]:
        interval = interval_with_seeds(
            claim["difference"], claim["interval_95"], ciders[claim["better"]], ciders[claim["worse"]]
        )
        settled = {"interval_95_seeds": interval, "verdict": verdict(interval)}
        claims.append({**claim, **settled})
    return {**results, "claims": claims}


def interval_with_seeds(
    difference: float, over_pictures: Sequence[float], better: Sequence[float], worse: Sequence[float]
) -> list[float] | None:
    """95 % interval of a difference over pictures and seeds; None if a row has one seed, and no spread.

    Args:
        difference: of the rows' mean scores.
        over_pictures: its 95 % interval over pictures alone.
        better: one row's score from each seed.
        worse: the other's.
    """
    if min(len(better), len(worse)) < 2:
        return None
    low, high = over_pictures
    of_pictures = ((high - low) / (2 * _NORMAL_95)) ** 2
    of_seeds = [(float(np.var(row, ddof=1)) / len(row), len(row) - 1) for row in (better, worse)]
    variance = of_pictures + sum(part for part, _ in of_seeds)
    uncertainty = sum(part**2 / freedom for part, freedom in of_seeds)
    quantile = _student_95(variance**2 / uncertainty) if uncertainty else _NORMAL_95
    half = quantile * math.sqrt(variance)
    return [difference - half, difference + half]


def verdict(interval: Sequence[float] | None) -> str:
    """Whether the interval is on the paper's side of 0, on the other, or on both, or is not known."""
    if interval is None:
        return "not settled"
    low, high = interval
    return "agrees" if low > 0 else "disagrees" if high < 0 else "not settled"


def _student_95(freedom: float) -> float:
    """97.5 % quantile of Student's t, by drawing it."""
    drawn = np.random.default_rng(0).standard_t(freedom, _DRAWS)
    return float(np.quantile(np.abs(drawn), 0.95))
