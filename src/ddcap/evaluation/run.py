"""Model and split to predictions to metrics. Predictions are written before anything is scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcap.captioner import Captioner
from ddcap.data.records import CaptionedImage, load_records
from ddcap.errors import DataError, MissingExtraError
from ddcap.evaluation.external import meteor, spice
from ddcap.evaluation.hallucination import find_inventions
from ddcap.evaluation.metrics import DocumentFrequencies, Metric, check_covered, score_tokenized
from ddcap.evaluation.result import Evaluation, HumanComparison, diagnose, leave_one_out
from ddcap.evaluation.tokenization import Tokenization, tokenize_with_references
from ddcap.files import read_json, write_json
from ddcap.machine import ALONE, Processes
from ddcap.settings import dump_settings

if TYPE_CHECKING:
    from ddcap.evaluation.clip_score import ClipScorer


# Predictions, wherever they are from, and the records of a split to an evaluation. No model is needed.

Texts = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class ScoringSettings:
    """Settings of scoring predictions.

    Attributes:
        tokenization: None takes Stanford's where Java is.
        document_frequencies: for CIDEr; None counts the references of the whole split.
        fast: without METEOR and SPICE, which take Java and time.
        corenlp: folder of CoreNLP 3.6.0's jars, for SPICE.
        clip: for CLIPScore and RefCLIPScore.
        human: also score human captions of the same images.
        objects: image id to names of objects that are there, for CHAIR; of as many images as are known.
    """

    tokenization: Tokenization | None = None
    document_frequencies: DocumentFrequencies | None = None
    fast: bool = False
    corenlp: Path | None = None
    clip: ClipScorer | None = None
    human: bool = True
    objects: Mapping[str, Sequence[str]] | None = None


def score_predictions(
    predictions: Mapping[str, str],
    records: Sequence[CaptionedImage],
    settings: ScoringSettings | None = None,
    *,
    training_captions: Sequence[str] = (),
    failed: Mapping[str, str] | None = None,
    decoding: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Score captions of all or some images of a split, and human captions beside them.

    Args:
        predictions: image id to caption.
        records: the whole split, even if only a part is predicted: CIDEr's document frequencies are its.
        settings: how to score.
        training_captions: to find captions that are copied.
        failed: image id to the reason there is no caption; is only passed on.
        decoding: the decoding settings; are only passed on.

    Raises:
        DataError: if there is nothing to score, or a prediction is of no image of the split.
        MissingExtraError: if pycocoevalcap is not installed.
    """
    settings = settings or ScoringSettings()
    references = {record.image_id: record.captions for record in records}
    images = {record.image_id: record.path for record in records}
    check_covered(predictions, references)
    split = records[0].split
    captions, truth, used = tokenize_with_references(predictions, references, settings.tokenization)
    frequencies = settings.document_frequencies or DocumentFrequencies.count(
        truth, f"all {len(records)} images of split {split}"
    )
    score = partial(score_tokenized, tokenization=used, document_frequencies=frequencies)
    inventions = find_inventions(captions, truth, settings.objects)
    others = {"CHAIR": inventions.metric, **_others(settings, predictions, references, images)}
    scores = score(captions, truth, others=others)

    human = None
    held_out, rest = leave_one_out(references) if settings.human else ({}, {})
    held_out = {image: caption for image, caption in held_out.items() if image in predictions}
    if held_out:
        words, words_of_rest = leave_one_out(truth)
        words = {image: words[image] for image in held_out}
        alike = {image: captions[image] for image in held_out}
        counts = [len(rest[image]) for image in held_out]
        peoples, models = (
            find_inventions(texts, words_of_rest, settings.objects) for texts in (words, alike)
        )
        others = {"CHAIR": peoples.metric, **_others(settings, held_out, rest, images)}
        human = HumanComparison(
            scores=score(words, words_of_rest, others=others),
            model=score(alike, words_of_rest, others={"CHAIR": models.metric}),
            references=(min(counts), max(counts)),
            diagnostics=diagnose(held_out.values(), training_captions),
            inventions=peoples,
        )
    return Evaluation(
        scores=scores,
        predictions=dict(predictions),
        split=split,
        split_images=len(records),
        references_digest=references_digest(references),
        diagnostics=diagnose(predictions.values(), training_captions),
        inventions=inventions,
        human=human,
        clip=None if settings.clip is None else settings.clip.name,
        failed=dict(failed or {}),
        decoding=dict(decoding or {}),
    )


def load_predictions(path: str | Path) -> dict[str, str]:
    """Image id to caption, from `[{"image_id": ..., "caption": ...}, ...]`.

    Raises:
        DataError: if the file is missing or something else.
    """
    remedy = 'give a list of {"image_id": ..., "caption": ...}'
    entries = read_json(path, remedy)
    if not isinstance(entries, list):
        raise DataError(f"{path}: is not a list; {remedy}")
    predictions: dict[str, str] = {}
    for number, entry in enumerate(entries):
        if (
            not isinstance(entry, dict)
            or "image_id" not in entry
            or not isinstance(entry.get("caption"), str)
        ):
            raise DataError(f"{path}: entry {number} has no image_id or no caption; {remedy}")
        image = str(entry["image_id"])
        if image in predictions:
            raise DataError(f"{path}: image {image!r} has two captions; keep one")
        predictions[image] = entry["caption"]
    return predictions


def _others(
    settings: ScoringSettings, captions: Mapping[str, str], references: Texts, images: Mapping[str, Path]
) -> dict[str, Metric]:
    """The metrics beside those of every validation; CLIPScore reads the captions as they are written."""
    others: dict[str, Metric] = {}
    if not settings.fast:
        others.update({"METEOR": meteor, "SPICE": partial(spice, corenlp=settings.corenlp)})
    if settings.clip is not None:
        clip = settings.clip
        others["CLIPScore"] = lambda *_: clip.score(captions, references, images)
    return others


def references_digest(references: Texts) -> str:
    """The same for the same human captions of a split (image id to captions), in any order of images."""
    lines = [json.dumps([image, list(texts)]) for image, texts in sorted(references.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


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

    Several processes share the images; the first scores the captions of all.

    Args:
        captioner: the model.
        json_path: captions, see `data.records.load_records`.
        image_folder: folder of the images.
        split: "train", "val" or "test".
        limit: only the first so many images.
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
        DataError: if the data cannot be used, or not one image can be read.
        MissingExtraError: if pycocoevalcap is not installed; predictions that are to be written are by then.
    """
    if predictions_path is not None and not Path(predictions_path).absolute().parent.is_dir():
        raise DataError(f"{predictions_path}: its folder does not exist; create it, or choose another path")
    if predictions_path is None and find_spec("pycocoevalcap") is None:
        raise MissingExtraError("scoring captions", "eval")
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit}: too small; caption at least 1 image")
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
        raise DataError(f"none of {len(wanted)} images could be captioned; the first: {reason}")
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
