"""Model and split to predictions to metrics. Predictions are written before anything is scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddcap.captioner import Captioner
from ddcap.data.karpathy import load_karpathy
from ddcap.errors import DataError
from ddcap.evaluation.bootstrap import bootstrap_interval
from ddcap.evaluation.metrics import Scores, score_captions
from ddcap.recipe import dump_settings


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        scores: the metrics.
        predictions: image id to caption.
        failed: image id to the reason there is no caption.
        split: name of the split.
        decoding: the decoding settings used, as plain values.
    """

    scores: Scores
    predictions: dict[str, str]
    failed: dict[str, str]
    split: str
    decoding: dict[str, Any]

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % bootstrap interval over images, of the metrics that are a mean over images."""
        return {name: bootstrap_interval(values) for name, values in self.scores.per_image.items()}

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "metrics": {name: round(value, 3) for name, value in self.scores.metrics.items()},
            "intervals_95": {name: [round(end, 2) for end in ends] for name, ends in self.intervals.items()},
            "images": len(self.predictions),
            "failed": self.failed,
            "split": self.split,
            "tokenization": self.scores.tokenization,
            "decoding": self.decoding,
        }

    def to_text(self) -> str:
        """What people read."""
        intervals = {name: f"  [{low:.1f}, {high:.1f}]" for name, (low, high) in self.intervals.items()}
        lines = [
            f"{name:<8} {value:6.1f}{intervals.get(name, '')}" for name, value in self.scores.metrics.items()
        ]
        lines.append(
            f"{len(self.predictions)} images of split {self.split}, tokenised by {self.scores.tokenization}; "
            "in brackets the 95 % bootstrap interval over images"
        )
        lines.extend(f"not captioned: {reason}" for reason in self.failed.values())
        return "\n".join(lines)


def evaluate(
    captioner: Captioner,
    json_path: str | Path,
    image_folder: str | Path,
    split: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    predictions_path: str | Path | None = None,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, _: items,
    **decoding: Any,
) -> Evaluation:
    """Caption a split and score it.

    Args:
        captioner: the model.
        json_path: Karpathy-layout JSON.
        image_folder: folder of the pictures.
        split: "train", "val" or "test".
        limit: only the first so many pictures.
        seed: for decoders that draw.
        batch_size: images computed at once.
        predictions_path: where the captions are written before scoring; None writes none.
        progress: wraps the results and their number.
        decoding: settings to change.

    Raises:
        DataError: if the data cannot be used, or not one picture can be read.
        MissingExtraError: if pycocoevalcap is not installed; the predictions are written by then.
    """
    if predictions_path is not None and not Path(predictions_path).absolute().parent.is_dir():
        raise DataError(f"{predictions_path}: its folder does not exist; make it, or choose another place")
    records = load_karpathy(json_path, image_folder, split)[:limit]
    paths = [record.path for record in records]
    results = captioner.caption_each(paths, seed=seed, batch_size=batch_size, **decoding)
    predictions: dict[str, str] = {}
    failed: dict[str, str] = {}
    for record, result in zip(records, progress(results, len(records)), strict=True):
        if result.error is not None:
            failed[record.image_id] = result.error
        else:
            predictions[record.image_id] = result.captions[0].text
    if not predictions:
        reason = next(iter(failed.values()))
        raise DataError(f"not one of {len(records)} pictures could be captioned; the first: {reason}")
    if predictions_path is not None:
        _write_json(
            predictions_path, [{"image_id": image, "caption": text} for image, text in predictions.items()]
        )
    references = {record.image_id: record.captions for record in records}
    scores = score_captions(predictions, references)
    return Evaluation(scores, predictions, failed, split, dump_settings(captioner.settings(**decoding)))


def save_evaluation(evaluation: Evaluation, path: str | Path) -> None:
    """Write `evaluation` with its scores per image, for comparisons."""
    scores = evaluation.scores
    per_image = {"image_ids": scores.image_ids, **scores.per_image}
    _write_json(path, {**evaluation.to_dict(), "per_image": per_image})


def _write_json(path: str | Path, content: Any) -> None:
    try:
        Path(path).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
