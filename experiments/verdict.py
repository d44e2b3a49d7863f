"""Does a difference between two rows hold on other images, from other seeds, and among so many comparisons?

New results carry p-values over images and seeds (`difference.py`); here they are corrected for their number
and judged. Results of earlier versions have scores of each seed but not of each image and seed: their
interval over images is widened by what the seeds differ by, and nothing corrects for their number. The
variance of a difference is then that over images, plus each row's variance over seeds divided by their
number. With few seeds the latter is itself uncertain, hence Student's t, with Satterthwaite's (1946) degrees
of freedom.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.difference import holm

LEVEL = 0.05
"""Of a whole table: the chance that it settles anything if no rows differ."""

_NORMAL_95 = 1.96
_DRAWS = 200_000


def settle(results: dict[str, Any]) -> dict[str, Any]:
    """The same results, every comparison with its `verdict`.

    Claims are one family for Holm's correction, the differences of all learning curves another, those of
    infilling a third. Made anew whenever results are read, so that those of an earlier version are judged,
    too.

    Args:
        results: what `ablate` wrote.
    """
    claims = [_as_before(claim, results) for claim in results["claims"] if "p" not in claim]
    claims += _judged([claim for claim in results["claims"] if "p" in claim])
    settled = copy.deepcopy({**results, "claims": claims})
    curves = [
        lead for content in (settled.get("curves") or {}).values() for lead in content["differences"].values()
    ]
    infilling = [
        lead
        for systems in settled["infilling"].values()
        for system, scores in systems.items()
        if " - " in system
        for lead in scores.values()
    ]
    for family in (curves, infilling):
        tested = [lead for lead in family if "p" in lead]
        for lead, judged in zip(tested, _judged(tested), strict=True):
            lead.update(judged)
    return settled


def _judged(comparisons: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One family of comparisons, with `p_holm` and `verdict`; without seeds there is no p, and no test."""
    adjusted = iter(holm([one["p"] for one in comparisons if one["p"] is not None]))
    judged = []
    for one in comparisons:
        p_holm = None if one["p"] is None else next(adjusted)
        is_settled = p_holm is not None and p_holm < LEVEL
        said = ("agrees" if one["difference"] > 0 else "disagrees") if is_settled else "not settled"
        judged.append({**one, "p_holm": p_holm, "verdict": said})
    return judged


def _as_before(claim: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """A claim of an earlier version, judged by the seeds' means."""
    better, worse = (
        [seed["CIDEr"] for seed in results["rows"][claim[side]]["seeds"].values()]
        for side in ("better", "worse")
    )
    interval = interval_with_seeds(claim["difference"], claim["interval_95"], better, worse)
    return {**claim, "interval_95_seeds": interval, "verdict": verdict(interval)}


def interval_with_seeds(
    difference: float, over_images: Sequence[float], better: Sequence[float], worse: Sequence[float]
) -> list[float] | None:
    """95 % interval of a difference over images and seeds; None if a row has one seed, and no spread.

    Args:
        difference: of the rows' mean scores.
        over_images: its 95 % interval over images alone.
        better: one row's score from each seed.
        worse: the other's.
    """
    if min(len(better), len(worse)) < 2:
        return None
    low, high = over_images
    of_images = ((high - low) / (2 * _NORMAL_95)) ** 2
    of_seeds = [(float(np.var(row, ddof=1)) / len(row), len(row) - 1) for row in (better, worse)]
    variance = of_images + sum(part for part, _ in of_seeds)
    uncertainty = sum(part**2 / freedom for part, freedom in of_seeds)
    quantile = _student_95(variance**2 / uncertainty) if uncertainty else _NORMAL_95
    half = quantile * math.sqrt(variance)
    return [difference - half, difference + half]


def interval_over_seeds(differences: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean of one difference a seed, by Student's t; None for a single seed."""
    if len(differences) < 2:
        return None
    half = (
        _student_95(len(differences) - 1) * float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    )
    mean = float(np.mean(differences))
    return [mean - half, mean + half]


def verdict(interval: Sequence[float] | None) -> str:
    """Tell whether the interval is on the paper's side of 0, on the other, or on both, or is not known."""
    if interval is None:
        return "not settled"
    low, high = interval
    return "agrees" if low > 0 else "disagrees" if high < 0 else "not settled"


def _student_95(freedom: float) -> float:
    """97.5 % quantile of Student's t, by drawing it."""
    drawn = np.random.default_rng(0).standard_t(freedom, _DRAWS)
    return float(np.quantile(np.abs(drawn), 0.95))
