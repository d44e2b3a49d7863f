"""Model and split to predictions to metrics. Predictions are written before anything is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ddcap.captioner import Captioner
from ddcap.data.karpathy import CaptionedImage
from ddcap.data.records import load_records
from ddcap.errors import DataError, MissingExtraError
from ddcap.evaluation.json_file import write_json
from ddcap.evaluation.result import Evaluation
from ddcap.evaluation.scoring import ScoringSettings, score_predictions
from ddcap.processes import ALONE, Processes
from ddcap.settings import dump_settings


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
    scoring: ScoringSettings | None = None,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, _: items,
    processes: Processes = ALONE,
    **decoding: Any,
) -> Evaluation | None:
    """Caption a split and score it.

    Several processes share the pictures; the first scores the captions of all.

    Args:
        captioner: the model.
        json_path: captions, see `data.records.load_records`.
        image_folder: folder of the pictures.
        split: "train", "val" or "test".
        limit: only the first so many pictures.
        seed: for decoders that draw.
        batch_size: images computed at once.
        predictions_path: where the captions are written before scoring; None writes none, and they are lost
            if scoring fails.
        scoring: how to score.
        progress: wraps the results and their number.
        processes: this one and the others, if there are any; every one has to call this.
        decoding: settings to change.

    Returns:
        The evaluation; None in all processes but the first.

    Raises:
        DataError: if the data cannot be used, or not one picture can be read.
        MissingExtraError: if pycocoevalcap is not installed; predictions that are to be written are by then.
    """
    if predictions_path is not None and not Path(predictions_path).absolute().parent.is_dir():
        raise DataError(f"{predictions_path}: its folder does not exist; make it, or choose another place")
    if predictions_path is None and find_spec("pycocoevalcap") is None:
        raise MissingExtraError("scoring captions", "eval")
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit}: at least one picture has to be captioned")
    split_records, training_captions = load_split(json_path, image_folder, split)
    wanted = split_records[:limit]
    records = wanted[processes.index :: processes.count]
    results = captioner.caption_each(
        [record.path for record in records], seed=seed, batch_size=batch_size, **decoding
    )
    predictions: dict[str, str] = {}
    failed: dict[str, str] = {}
    for record, result in zip(records, progress(results, len(records)), strict=True):
        if result.error is not None:
            failed[record.image_id] = result.error
        else:
            predictions[record.image_id] = result.captions[0].text
    everyones = processes.gather((predictions, failed))
    if processes.index:
        return None
    order = [record.image_id for record in wanted]
    predictions, failed = (_in_order(order, [part[kind] for part in everyones]) for kind in (0, 1))
    if not predictions:
        reason = next(iter(failed.values()))
        raise DataError(f"not one of {len(wanted)} pictures could be captioned; the first: {reason}")
    if predictions_path is not None:
        write_json(
            predictions_path, [{"image_id": image, "caption": text} for image, text in predictions.items()]
        )
    return score_predictions(
        predictions,
        split_records,
        scoring,
        training_captions=training_captions,
        failed=failed,
        decoding={**dump_settings(captioner.settings(**decoding)), "precision": captioner.precision},
    )


def _in_order(images: Iterable[str], parts: Iterable[dict[str, str]]) -> dict[str, str]:
    together = {image: text for part in parts for image, text in part.items()}
    return {image: together[image] for image in images if image in together}


def load_split(
    json_path: str | Path, image_folder: str | Path, split: str
) -> tuple[list[CaptionedImage], list[str]]:
    """The records of a split, and the captions of the training split (none where the file has none).

    Raises:
        DataError: if the data cannot be used, or the split is empty.
    """
    records = load_records(json_path, image_folder, split)
    everything = load_records(json_path, image_folder)
    return records, [text for record in everything if record.split == "train" for text in record.captions]
