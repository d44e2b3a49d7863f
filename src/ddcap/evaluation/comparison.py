"""Two evaluations of the same images: is one better, or is it chance?

The images are paired, so what is resampled is the difference on each image: far more telling than two
intervals side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddcap.errors import DataError
from ddcap.evaluation.metrics import percentile_interval, resampled_means
from ddcap.files import read_json

_REMEDY = "give a file written by `ddcap evaluate --output` or `ddcap metrics --output`"
_SAME = {
    "split": "split",
    "references": "references",
    "tokenization": "tokenisation",
    "idf": "document frequencies (idf)",
}


@dataclass(frozen=True)
class Difference:
    """One metric on the images that both evaluations have.

    Attributes:
        first: score of the first.
        second: score of the second.
        interval: 95 % bootstrap interval over images of second - first; None for a metric that is not a mean
            over images.
    """

    first: float
    second: float
    interval: tuple[float, float] | None

    @property
    def excludes_zero(self) -> bool | None:
        """True if chance alone hardly explains the difference; None where there is no interval."""
        return None if self.interval is None else self.interval[0] > 0 or self.interval[1] < 0


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        images: number of common images.
        differences: by name of the metric.
    """

    images: int
    differences: dict[str, Difference]

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        rows = {
            name: {
                "first": round(row.first, 3),
                "second": round(row.second, 3),
                "difference": round(row.second - row.first, 3),
                "interval_95": None if row.interval is None else [round(end, 3) for end in row.interval],
                "excludes_zero": row.excludes_zero,
            }
            for name, row in self.differences.items()
        }
        return {"images": self.images, "metrics": rows}

    def to_text(self) -> str:
        """Return the text that people read."""
        lines = [f"{'':<12} {'first':>6} {'second':>6} {'difference':>10}  95 % interval"]
        for name, row in self.differences.items():
            line = f"{name:<12} {row.first:6.1f} {row.second:6.1f} {row.second - row.first:+10.2f}"
            if row.interval is not None:
                low, high = row.interval
                line += f"  [{low:+.2f}, {high:+.2f}] " + (
                    "differs" if row.excludes_zero else "may be chance"
                )
            lines.append(line)
        lines.append(f"{self.images} common images; intervals: paired bootstrap over images")
        return "\n".join(lines)


def compare(first_path: str | Path, second_path: str | Path) -> Comparison:
    """Compare two files written by `save_evaluation`.

    Metrics that are no mean over images (BLEU, METEOR) are compared without an interval, and only where both
    evaluations are of the same images.

    Raises:
        DataError: if a file is something else, or the two cannot be compared.
    """
    first, second = _load(first_path), _load(second_path)
    for key, name in _SAME.items():
        if _identity(first[key]) != _identity(second[key]):
            raise DataError(
                f"{first_path} and {second_path}: different {name} ({_shown(first[key])}, "
                f"{_shown(second[key])}), so their scores cannot be compared; evaluate both alike"
            )
    if first.get("clip") and second.get("clip") and first["clip"] != second["clip"]:
        raise DataError(
            f"{first_path} and {second_path}: different CLIPs ({first['clip']}, {second['clip']}), so their "
            "scores cannot be compared; evaluate both alike"
        )
    each_first, each_second = (_by_image(each["per_image"]) for each in (first, second))
    images = [image for image in each_first if image in each_second]
    if not images:
        raise DataError(
            f"{first_path} and {second_path}: have no image in common; evaluate both on the same images"
        )
    weights_first, weights_second = (
        _by_image({**each.get("weights", {}), "image_ids": each["per_image"]["image_ids"]})
        for each in (first, second)
    )
    same_images = len(images) == len(each_first) == len(each_second)
    differences: dict[str, Difference] = {}
    for name in first["metrics"]:
        if name not in second["metrics"]:
            continue
        if all(name in each[images[0]] for each in (each_first, each_second)):
            ones = [each_first[image][name] for image in images]
            others = [each_second[image][name] for image in images]
            weighs = [
                [each[image][name] for image in images] if name in each[images[0]] else None
                for each in (weights_first, weights_second)
            ]
            differences[name] = _difference(ones, others, *weighs)
        elif same_images:
            differences[name] = Difference(first["metrics"][name], second["metrics"][name], None)
    return Comparison(len(images), differences)


def _load(path: str | Path) -> dict[str, Any]:
    content = read_json(path, _REMEDY)
    if not isinstance(content, dict):
        raise DataError(f"{path}: is not an evaluation; {_REMEDY}")
    missing = [key for key in ("metrics", "per_image", *_SAME) if not content.get(key)]
    if missing:
        raise DataError(f"{path}: has no {missing[0]!r}, so it cannot be compared; {_REMEDY}")
    metrics, per_image, idf = content["metrics"], content["per_image"], content["idf"]
    weights = content.get("weights", {})
    is_whole = (
        all(isinstance(part, dict) for part in (metrics, per_image, idf, weights))
        and "digest" in idf
        and isinstance(per_image.get("image_ids"), list)
        and _numbers(metrics.values())
        and all(
            isinstance(column, list)
            and len(column) == len(per_image["image_ids"])
            and (name == "image_ids" or _numbers(column))
            for name, column in (*per_image.items(), *weights.items())
        )
    )
    if not is_whole:
        raise DataError(f"{path}: its scores are damaged; {_REMEDY}")
    return content


def _numbers(values: Any) -> bool:
    return all(isinstance(value, (int, float)) for value in values)


def _by_image(columns: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Image id to its values by name."""
    return {
        image: {name: values[row] for name, values in columns.items() if name != "image_ids"}
        for row, image in enumerate(columns["image_ids"])
    }


def _difference(
    ones: Sequence[float],
    others: Sequence[float],
    weights: Sequence[float] | None,
    other_weights: Sequence[float] | None,
) -> Difference:
    """Of two means over the same images, weighted ones where there are weights."""
    if weights is None or other_weights is None:
        means = resampled_means([b - a for a, b in zip(ones, others, strict=True)])
        first, second = sum(ones) / len(ones), sum(others) / len(others)
    else:
        means = resampled_means(others, other_weights) - resampled_means(ones, weights)
        first, second = (
            sum(value * weight for value, weight in zip(values, heavy, strict=True)) / max(sum(heavy), 1)
            for values, heavy in ((ones, weights), (others, other_weights))
        )
    return Difference(first, second, percentile_interval(means))


def _identity(value: Any) -> Any:
    """Return what has to be equal: of document frequencies their digest, not what they are called."""
    return value["digest"] if isinstance(value, dict) else value


def _shown(value: Any) -> str:
    return str(value.get("source")) if isinstance(value, dict) else str(value)
