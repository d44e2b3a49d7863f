"""Predictions, wherever they are from, and the records of a split to an evaluation. No model is needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcap.data.karpathy import CaptionedImage
from ddcap.errors import DataError
from ddcap.evaluation.diagnostics import diagnose
from ddcap.evaluation.document_frequencies import DocumentFrequencies
from ddcap.evaluation.human import HumanComparison, leave_one_out
from ddcap.evaluation.json_file import read_json
from ddcap.evaluation.meteor import meteor
from ddcap.evaluation.metrics import Metric, check_covered, score_tokenized
from ddcap.evaluation.result import Evaluation
from ddcap.evaluation.spice import spice
from ddcap.evaluation.tokenization import Tokenization, tokenize_with_references

if TYPE_CHECKING:
    from ddcap.evaluation.clip_score import ClipScorer

Texts = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class ScoringSettings:
    """How predictions are scored.

    Attributes:
        tokenization: None takes Stanford's where Java is.
        document_frequencies: for CIDEr; None counts the references of the whole split.
        fast: without METEOR and SPICE, which take Java and time.
        corenlp: folder of CoreNLP 3.6.0's jars, for SPICE.
        clip: for CLIPScore and RefCLIPScore.
        human: also score human captions of the same images.
    """

    tokenization: Tokenization | None = None
    document_frequencies: DocumentFrequencies | None = None
    fast: bool = False
    corenlp: Path | None = None
    clip: ClipScorer | None = None
    human: bool = True


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
    scores = score(captions, truth, others=_others(settings, predictions, references, images))

    human = None
    held_out, rest = leave_one_out(references) if settings.human else ({}, {})
    held_out = {image: caption for image, caption in held_out.items() if image in predictions}
    if held_out:
        words, words_of_rest = leave_one_out(truth)
        words = {image: words[image] for image in held_out}
        counts = [len(rest[image]) for image in held_out]
        human = HumanComparison(
            scores=score(words, words_of_rest, others=_others(settings, held_out, rest, images)),
            model=score({image: captions[image] for image in held_out}, words_of_rest),
            references=(min(counts), max(counts)),
            diagnostics=diagnose(held_out.values(), training_captions),
        )
    return Evaluation(
        scores=scores,
        predictions=dict(predictions),
        split=split,
        split_images=len(records),
        references_digest=_digest(references),
        diagnostics=diagnose(predictions.values(), training_captions),
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
        raise DataError(f"{path}: is no list; {remedy}")
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


def _digest(references: Texts) -> str:
    lines = [json.dumps([image, list(texts)]) for image, texts in sorted(references.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
