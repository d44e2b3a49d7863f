"""Fit and test a model's confidence; see `decoding/confidence.py`.

A caption is accepted if its CIDEr against all human captions of the image is over the median of human
captions, each against the others of its image. It is faithful if people have named all that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddcap.captioner import Captioner
from ddcap.data.records import CaptionedImage
from ddcap.decoding.caption import Caption
from ddcap.decoding.confidence import (
    Confidence,
    KnownImages,
    Logistic,
    caption_inputs,
    known_inputs,
    memory_means,
    word_inputs,
)
from ddcap.decoding.generate import CaptionRequest
from ddcap.errors import DataError, ImageError
from ddcap.evaluation.metrics import DocumentFrequencies, score_cider
from ddcap.evaluation.tokenization import Tokenization, tokenize
from ddcap.machine import ahead
from ddcap.model.features import ImageFeatures


@dataclass(frozen=True)
class JudgedCaptions:
    """Captions of images that people have captioned, and whether they are right.

    Attributes:
        records: of the images.
        features: of each image, as of one image.
        captions: of each.
        cider: (I,) times 100.
        accepted: (I,) boolean.
        faithful: (I,) boolean.
    """

    records: list[CaptionedImage]
    features: list[ImageFeatures]
    captions: list[Caption]
    cider: np.ndarray
    accepted: np.ndarray
    faithful: np.ndarray


Progress = Callable[[Iterable[Any], int], Iterable[Any]]


def judge_captions(
    captioner: Captioner,
    records: Sequence[CaptionedImage],
    *,
    tokenization: Tokenization | None = None,
    progress: Progress = lambda items, _: items,
    **settings: Any,
) -> JudgedCaptions:
    """Caption a whole split, and see what people would say.

    Raises:
        DataError: if there are fewer than 20 images with two captions or more.
        MissingExtraError: if pycocoevalcap is not installed.
    """
    usable = [record for record in records if len(record.captions) > 1]
    if len(usable) < 20:
        raise DataError(f"only {len(usable)} images have two captions or more; give at least 20")
    model = captioner.model.for_bulk() if captioner.runtime == "onnx" else captioner.model
    asked = CaptionRequest(captioner.settings(**settings))

    def caption(record: CaptionedImage) -> tuple[ImageFeatures, Caption]:
        with captioner.computing():
            features = model.encode(captioner.pixels(record.path)[None])
            generator = np.random.default_rng(0)
            ((found,),) = asked.captions(model, features, captioner.word_vocabulary, generator)
        return features, found

    pairs = [found for _, found in progress(ahead(caption, usable), len(usable))]
    together, _ = tokenize(
        {one.image_id: [*one.captions, pair[1].text] for one, pair in zip(usable, pairs, strict=True)},
        tokenization,
    )
    truth = {image: texts[:-1] for image, texts in together.items()}
    frequencies = DocumentFrequencies.count(truth, "the judged images")
    cider = score_cider(truth, {image: texts[-1:] for image, texts in together.items()}, frequencies)
    human = []
    for place in range(max(len(texts) for texts in truth.values())):
        several = {image: texts for image, texts in truth.items() if place < len(texts)}
        rest = {image: [*texts[:place], *texts[place + 1 :]] for image, texts in several.items()}
        own = {image: [texts[place]] for image, texts in several.items()}
        human += score_cider(rest, own, frequencies).per_image or []
    scores = np.array(cider.per_image)
    return JudgedCaptions(
        usable,
        [features for features, _ in pairs],
        [found for _, found in pairs],
        100 * scores,
        scores > np.median(human),
        np.array([_is_faithful(captioner, *pair) for pair in zip(pairs, usable, strict=True)]),
    )


def _is_faithful(captioner: Captioner, pair: tuple[ImageFeatures, Caption], record: CaptionedImage) -> bool:
    """Return True if the captions of people name, in any form of its word, all that a caption names."""
    said, named = set(_names(captioner, pair[1].text)), set()
    for text in record.captions:
        named |= set(_names(captioner, text))
    return said <= named


def _names(captioner: Captioner, text: str) -> list[Any]:
    vocabulary = captioner.model.vocabulary
    if vocabulary is not None:
        return list(vocabulary.find(text))
    from ddcap.decoding.constraints import words_of
    from ddcap.decoding.words import FUNCTION_WORDS

    return [word for word in words_of(text) if word not in FUNCTION_WORDS]


def features_of(
    captioner: Captioner, paths: Sequence[Path], progress: Progress = lambda items, _: items
) -> list[ImageFeatures]:
    """Of each image that can be read, as of one image."""
    model = captioner.model.for_bulk() if captioner.runtime == "onnx" else captioner.model

    def encode(path: Path) -> ImageFeatures | None:
        try:
            with captioner.computing():
                features: ImageFeatures = model.encode(captioner.pixels(path)[None])
        except ImageError:
            return None
        return features

    found = (features for _, features in progress(ahead(encode, paths), len(paths)))
    return [features for features in found if features is not None]


def calibrate(
    captioner: Captioner,
    judged: Sequence[JudgedCaptions],
    training: Sequence[ImageFeatures],
    unknown: Sequence[ImageFeatures],
) -> Confidence:
    """Fit the confidence of a model.

    Args:
        captioner: of the model.
        judged: splits that the model was not trained on.
        training: features of images that it was trained on.
        unknown: features of images of kinds that it does not know.

    Raises:
        DataError: if there are fewer than 20 of `training` or of `unknown`.
    """
    for name, found in (("training", training), ("unknown", unknown)):
        if len(found) < 20:
            raise DataError(f"only {len(found)} {name} images; give at least 20")
    vocabulary = captioner.model.vocabulary
    images = KnownImages.of(np.concatenate([memory_means(one) for one in training]))
    seen = [one for split in judged for one in split.features]
    captions = [one for split in judged for one in split.captions]
    inputs = np.array(
        [caption_inputs(one, features, 0, vocabulary) for one, features in zip(captions, seen, strict=True)]
    )
    kinds = np.concatenate([known_inputs(one, images) for one in [*seen, *unknown]])
    is_known = np.arange(len(kinds)) < len(seen)
    parts = {
        "sure": Logistic.fit(inputs, np.concatenate([split.accepted for split in judged])),
        "faithful": Logistic.fit(inputs, np.concatenate([split.faithful for split in judged])),
        "known": Logistic.fit(kinds, is_known),
    }
    if vocabulary is not None:
        rows, right = _judged_words(captioner, judged)
        parts["word"] = Logistic.fit(rows, right)
    return Confidence(images, parts)


def _judged_words(captioner: Captioner, judged: Sequence[JudgedCaptions]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of the words of captions, and whether people name the same."""
    rows, right = [], []
    vocabulary = captioner.model.vocabulary
    for split in judged:
        for record, features, caption in zip(split.records, split.features, split.captions, strict=True):
            named = {concept for text in record.captions for concept in vocabulary.find(text)}
            for word, inputs in word_inputs(caption, features, 0, vocabulary).items():
                rows.append(inputs)
                right.append(vocabulary.number(word) in named)
    return np.array(rows), np.array(right)


# How well confidence holds.


def calibration_error(chances: np.ndarray, happened: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error over bins of equally many: mean |chance - share that happened|."""
    order = np.argsort(chances, kind="stable")
    parts = np.array_split(order, bins)
    gaps = [abs(chances[part].mean() - happened[part].mean()) * len(part) for part in parts if len(part)]
    return float(sum(gaps) / len(chances))


def mean_at_coverage(values: np.ndarray, chances: np.ndarray, share: float) -> float:
    """Mean value of the `share` of captions with the highest chances."""
    order = np.argsort(-chances, kind="stable")
    return float(values[order[: max(1, round(share * len(values)))]].mean())


def area_under_curve(true: np.ndarray, other: np.ndarray) -> float:
    """Compute how often one of `true` is over one of `other`; equal ones count half."""
    order = np.sort(other)
    below, up_to = np.searchsorted(order, true, "left"), np.searchsorted(order, true, "right")
    return float((below + up_to).sum() / 2 / len(true) / len(other))
