"""Sequence-level distillation: a trained model captions the training images (`ddcap distill`).

A denoising step predicts its positions independently of each other, and five people's captions of an image
mix in it. A teacher's captions are in one voice: a student that learns from them has fewer to confuse. An
autoregressive teacher gives its beams, a diffusion model its candidates of several lengths; of both those
stay that agree best with people's captions (sequence-level interpolation). A diffusion model may be its own
teacher. Source: Kim and Rush 2016 (Sequence-Level Knowledge Distillation); Gu et al. 2018 and Ghazvininejad
et al. 2019 for models that fill in many words at once.

Shapes: I images, K beams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddcap.data.batches import CaptionData, Draw
from ddcap.data.records import CaptionedImage, fold_of
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.generate import generate, start_tokens
from ddcap.decoding.left_to_right import decode_left_to_right
from ddcap.decoding.sampler import concept_evidence
from ddcap.decoding.trace import DecodingResult
from ddcap.errors import DataError, RecipeError
from ddcap.evaluation.hallucination import thing_words
from ddcap.evaluation.metrics import DocumentFrequencies, score_cider
from ddcap.evaluation.slips import repeats_content, slips_of
from ddcap.evaluation.tokenization import tokenize
from ddcap.model.autoregressive import AutoregressiveModel
from ddcap.model.features import ImageFeatures
from ddcap.model.loading import TorchModel, load_model
from ddcap.publishing import find_model
from ddcap.recipe import Recipe
from ddcap.training.loss import batch_features
from ddcap.training.start import load_training_images

_IMAGES_AT_ONCE = 32


@dataclass(frozen=True)
class Teacher:
    """A trained model.

    Attributes:
        model: in evaluation mode.
        tokenizer: of the model.
        fold: the fold of the training images that it has not seen, and captions; None: it captions all.
    """

    model: TorchModel
    tokenizer: CaptionTokenizer
    fold: int | None = None


def load_teachers(folders: Sequence[str], folds: int) -> list[Teacher]:
    """Load the teachers; with several folds, teacher i has not seen fold i modulo `folds`.

    Raises:
        CheckpointError: if there is no such model.
        RecipeError: if a fold has no teacher.
    """
    if len(folders) % folds:
        raise RecipeError(
            f"data.folds={folds}: needs as many teachers, or a multiple of that; {len(folders)} are given: "
            "name one for each fold, in the order of the folds"
        )
    teachers = []
    for number, name in enumerate(folders):
        folder = find_model(name)
        model = load_model(folder)
        fold = number % folds if folds > 1 else None
        teachers.append(Teacher(model.eval(), CaptionTokenizer.load(folder), fold))
    return teachers


def distill(
    recipe: Recipe,
    teachers: Sequence[Teacher],
    *,
    beams: int,
    keep: int,
    careful: bool = False,
    min_cider: float = 0.0,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, _: items,
) -> list[dict[str, Any]]:
    """Caption the training images, each by the teachers that have not seen it.

    Of all captions of an image's teachers the `keep` that agree best with its human captions (CIDEr-D) stay.

    Args:
        recipe: its sections `data` and `encoder` say which images, and how they are seen: in view 0.
        teachers: from `load_teachers`.
        beams: K; beams of an autoregressive teacher, lengths of a diffusion model.
        keep: captions per image, at most.
        careful: leave out captions that name a thing which none of the image's human captions shows
            (`things.txt`), that have a slip of English, or that say a content word twice.
        min_cider: CIDEr-D, in points (100 times the score), that a caption needs to stay.
        progress: wraps the batches and their number.

    Returns:
        Entries of a Karpathy JSON, in the order of the images; each sentence has its CIDEr beside it.

    Raises:
        DataError: if the data cannot be used.
        MissingExtraError: if pycocoevalcap is not installed.
    """
    data = load_training_images(recipe, teachers[0].tokenizer)
    records = data.records
    found: list[list[str]] = [[] for _ in records]
    work = []
    for teacher in teachers:
        own = [
            number
            for number, record in enumerate(records)
            if teacher.fold is None or fold_of(record, recipe.data.folds) == teacher.fold
        ]
        work += [
            (teacher, own[start : start + _IMAGES_AT_ONCE]) for start in range(0, len(own), _IMAGES_AT_ONCE)
        ]
    for teacher, numbers in progress(work, len(work)):
        for number, texts in _captions_of(teacher, data, numbers, beams).items():
            found[number] += [text for text in texts if text and text not in found[number]]
    scores, faultless = _agreement(records, found)
    root = Path(recipe.data.root) / recipe.data.images
    entries = []
    for record, texts, values, clean in zip(records, found, scores, faultless, strict=True):
        points = [round(100 * value, 1) for value in values]
        places = [
            place
            for place in range(len(texts))
            if points[place] >= min_cider and (clean[place] or not careful)
        ]
        if not places:
            continue  # the image cannot be read, or no caption of it is good enough
        best = sorted(places, key=lambda place: -values[place])[:keep]
        entries.append(
            {
                "filename": record.path.name,
                "filepath": record.path.parent.relative_to(root).as_posix(),
                "split": "train",
                "sentences": [{"raw": texts[place], "cider": points[place]} for place in best],
            }
        )
    if not entries:
        strict = [f"--min-cider {min_cider:g}"] * (min_cider > 0) + ["--careful"] * careful
        remedy = f"leave {' and '.join(strict)} out" if strict and any(found) else "check data.root"
        raise DataError(f"none of {len(records)} training images could be captioned; {remedy}")
    return entries


@torch.no_grad()
def _captions_of(
    teacher: Teacher, data: CaptionData, numbers: Sequence[int], beams: int
) -> dict[int, list[str]]:
    """All K captions of each image that can be read, the likeliest first."""
    model, tokenizer = teacher.model, teacher.tokenizer
    batch = data[tuple(Draw(number, (), view=0, epoch=0) for number in numbers)]
    if batch.is_blank:
        return {}
    features = batch_features(model, batch)
    assert features is not None
    if isinstance(model, AutoregressiveModel):
        result = _beams(model, features, tokenizer.end_id, beams)
    else:
        settings = replace(model.config.decoding, candidates=beams)
        result = generate(model, features, settings, tokenizer.end_id, captions_per_image=beams)
    texts = [tokenizer.decode(row) for row in result.until(tokenizer.end_id).tolist()]
    each = len(texts) // features.images
    return {numbers[place]: texts[row * each : (row + 1) * each] for row, place in enumerate(batch.places)}


def _beams(model: AutoregressiveModel, features: ImageFeatures, end_id: int, beams: int) -> DecodingResult:
    settings = model.config.decoding
    lengths = torch.full((features.images,), model.config.model.max_length)
    return decode_left_to_right(
        model,
        features,
        start_tokens(lengths, model.mask_id),
        lengths,
        end_id,
        may_end=True,
        beams=beams,
        length_penalty=settings.length_penalty,
        concepts=concept_evidence(model, features, settings, 1),
        concept_weight=settings.concept_weight,
        keep=beams,
    )


def _agreement(
    records: Sequence[CaptionedImage], found: Sequence[Sequence[str]]
) -> tuple[list[list[float]], list[list[bool]]]:
    """CIDEr-D of each image's captions against its human ones, and which are faultless."""
    human, _ = tokenize({str(n): record.captions for n, record in enumerate(records)}, "ptb-python")
    written, _ = tokenize({str(n): texts for n, texts in enumerate(found)}, "ptb-python")
    frequencies = DocumentFrequencies.count(human, f"{len(records)} training images")
    truth: dict[str, Sequence[str]] = {}
    guess: dict[str, Sequence[str]] = {}
    faultless = []
    things = thing_words()
    for number, texts in written.items():
        shown = set().union(*map(things.shown, human[number]))
        faultless.append([_is_faultless(text, shown) for text in texts])
        for place, text in enumerate(texts):
            truth[f"{number}/{place}"], guess[f"{number}/{place}"] = human[number], [text]
    each = iter(score_cider(truth, guess, frequencies).per_image or ())
    return [[next(each) for _ in texts] for texts in found], faultless


def _is_faultless(text: str, shown: set[str]) -> bool:
    """Return True if a tokenised caption names only things that are shown, without slips or repeats."""
    words = text.split()
    invents = any(shown.isdisjoint(mention.things) for mention in thing_words().mentions(text))
    return not (invents or slips_of(words) or repeats_content(words))
