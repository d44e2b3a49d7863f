"""Means: over the seeds of a row, image by image, and over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ddcap.evaluation.metrics import bootstrap_interval


def mean_of(columns: Sequence[Sequence[float]]) -> list[float]:
    """The mean over seeds, for every image."""
    return [sum(values) / len(values) for values in zip(*columns, strict=True)]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean over images and its interval."""
    return {"mean": sum(values) / len(values), "interval_95": list(bootstrap_interval(values))}
