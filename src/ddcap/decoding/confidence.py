"""Calibrated confidence of a captioner, fitted on images with human captions.

- sure: that the caption's CIDEr is above the median human caption's;
- faithful: that it names nothing which none of the people has named;
- known: that the image is of a kind which the model knows, not a drawing, a text or noise;
- word: that people name what a word names.

Each is a logistic regression on a few numbers that decoding has at hand, so that it costs next to nothing.
`evaluation/calibration.py` fits them, docs/confidence.md says how well they hold. Not in the paper.

Shapes: I images, S samples, F inputs, C encoder width, R directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ddcap.arrays import Array, to_host
from ddcap.data.concepts import NO_CONCEPT, ConceptVocabulary
from ddcap.decoding.caption import Caption
from ddcap.decoding.words import word_positions
from ddcap.errors import CheckpointError
from ddcap.files import replacing
from ddcap.model.config import CONFIDENCE_NAME
from ddcap.model.features import ImageFeatures

_NAMES = ("sure", "faithful", "known", "word")
_TINY = 1e-6
DOUBT = 0.3  # a word is doubtful if a smaller share of annotators would use it


@dataclass(frozen=True)
class Logistic:
    """A logistic regression.

    Attributes:
        weights: (F,).
        bias: ().
    """

    weights: np.ndarray
    bias: float

    def probability(self, inputs: np.ndarray) -> np.ndarray:
        """(S,) of inputs (S, F)."""
        found: np.ndarray = 1 / (1 + np.exp(-(inputs @ self.weights + self.bias)))
        return found

    @classmethod
    def fit(cls, inputs: np.ndarray, is_true: np.ndarray, ridge: float = 1.0) -> Logistic:
        """By Newton's method, with a ridge on the weights of standardised inputs.

        Args:
            inputs: (S, F).
            is_true: (S,) boolean.
            ridge: how much weights are held back.
        """
        mean, spread = inputs.mean(axis=0), inputs.std(axis=0) + _TINY
        rows = np.column_stack([(inputs - mean) / spread, np.ones(len(inputs))])
        held = ridge * np.eye(rows.shape[1])
        held[-1, -1] = 0
        found = np.zeros(rows.shape[1])
        for _ in range(100):
            chance = 1 / (1 + np.exp(-rows @ found))
            slope = rows.T @ (is_true - chance) - held @ found
            change = np.linalg.solve((rows * (chance * (1 - chance))[:, None]).T @ rows + held, slope)
            found += change
            if np.abs(change).max() < 1e-8:
                break
        weights = found[:-1] / spread
        return cls(weights, float(found[-1] - weights @ mean))


@dataclass(frozen=True)
class KnownImages:
    """The encoder's features of images like those of the training: a centre and directions around it.

    An image's distance is in two parts: along the directions, in their spread, and beside them. Source:
    Mahalanobis distance, Lee et al. 2018; the residual, Wang et al. 2022 (ViM).

    Attributes:
        centre: (C,) mean of the memory's means.
        directions: (R, C) orthonormal.
        spread: (R,) standard deviation along each.
    """

    centre: np.ndarray
    directions: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, means: np.ndarray, directions: int = 128) -> KnownImages:
        """From the memory's means (I, C) of training images."""
        centre = means.mean(axis=0)
        _, values, rows = np.linalg.svd(means - centre, full_matrices=False)
        count = min(directions, len(values) - 1)
        return cls(centre, rows[:count], values[:count] / math.sqrt(len(means)) + _TINY)

    def distances(self, means: np.ndarray) -> np.ndarray:
        """(I, 2) logarithms of the distances along the directions and beside them."""
        offset = means - self.centre
        along = offset @ self.directions.T
        beside = ((offset - along @ self.directions) ** 2).sum(axis=1)
        return np.log(np.column_stack([((along / self.spread) ** 2).sum(axis=1), beside]) + _TINY)


@dataclass(frozen=True)
class Confidence:
    """A model's calibrated probabilities.

    Attributes:
        images: what the model knows.
        parts: the regressions by name; of a model without concepts, there is none for words.
    """

    images: KnownImages
    parts: Mapping[str, Logistic]

    @classmethod
    def load(cls, folder: Path) -> Confidence | None:
        """Read `confidence.safetensors` of a model's folder; None if there is none.

        Raises:
            CheckpointError: if it is damaged.
        """
        path = folder / CONFIDENCE_NAME
        if not path.is_file():
            return None
        from safetensors.numpy import load_file

        try:
            arrays = {name: value.astype(np.float32) for name, value in load_file(path).items()}
            parts = {
                name: Logistic(arrays[f"{name}.weights"], float(arrays[f"{name}.bias"][0]))
                for name in _NAMES
                if f"{name}.weights" in arrays
            }
            images = KnownImages(*(arrays[name] for name in ("centre", "directions", "spread")))
        except Exception as error:  # the library has exceptions of its own, under no common name
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{path}: damaged ({reason}); run 'ddcap calibrate' again") from None
        return cls(images, parts)

    def save(self, folder: Path) -> None:
        """Write `confidence.safetensors` into a model's folder."""
        from safetensors.numpy import save_file

        arrays = {name: np.asarray(value, dtype=np.float16) for name, value in vars(self.images).items()}
        for name, part in self.parts.items():
            arrays[f"{name}.weights"] = part.weights.astype(np.float32)
            arrays[f"{name}.bias"] = np.array([part.bias], dtype=np.float32)
        arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        with replacing(folder / CONFIDENCE_NAME) as temporary:
            save_file(arrays, temporary)

    def known(self, features: ImageFeatures) -> np.ndarray:
        """(I,) probability that an image is of a kind that the model knows."""
        return self.parts["known"].probability(known_inputs(features, self.images))

    def judge(
        self,
        caption: Caption,
        features: ImageFeatures,
        image: int,
        known: float,
        vocabulary: ConceptVocabulary | None,
    ) -> Caption:
        """The caption with its confidence.

        Args:
            caption: of the image.
            features: of I images, as the model sees them, whatever a person says of them.
            image: which one.
            known: of the image.
            vocabulary: of the model's concepts, or None.
        """
        inputs = caption_inputs(caption, features, image, vocabulary)[None]
        sure, faithful = (float(self.parts[name].probability(inputs)[0]) for name in ("sure", "faithful"))
        doubtful: list[str] = []
        if "word" in self.parts and vocabulary is not None:
            named = word_inputs(caption, features, image, vocabulary)
            if named:
                chances = self.parts["word"].probability(np.array([*named.values()]))
                doubtful = [word for word, chance in zip(named, chances, strict=True) if chance < DOUBT]
        return replace(
            caption, sure=known * sure, faithful=known * faithful, known=known, doubtful=tuple(doubtful)
        )


# What the regressions read.


def memory_means(features: ImageFeatures) -> np.ndarray:
    """(I, C) mean of the memory over its positions."""
    return np.asarray(to_host(features.memory).mean(axis=1, dtype=np.float32))


def known_inputs(features: ImageFeatures, images: KnownImages) -> np.ndarray:
    """(I, F) distances from known images; with concepts, also how much is seen."""
    distances = images.distances(memory_means(features))
    if features.concepts is None:
        return distances
    return np.column_stack([distances, *_seen(features.concepts.confidences).T])


def _seen(confidences: Array) -> np.ndarray:
    """(I, 3) confidence (I, K) of the surest concept, mean of the three surest, and the sum of all."""
    confidences = np.sort(to_host(confidences), axis=1)[:, ::-1].astype(np.float64)
    return np.column_stack([confidences[:, 0], confidences[:, :3].mean(axis=1), confidences.sum(axis=1)])


def caption_inputs(
    caption: Caption, features: ImageFeatures, image: int, vocabulary: ConceptVocabulary | None
) -> np.ndarray:
    """(F,) how sure the tokens were, and with concepts: how much is seen, and how much of it is said."""
    surest = [max(value, _TINY) for value in caption.confidences]
    inputs = [caption.score, math.log(min(surest, default=1.0)), float(caption.length)]
    if features.concepts is not None and vocabulary is not None:
        confidence = _confidence_of(features, image)
        said = sum(confidence.get(concept, 0.0) for concept in vocabulary.find(caption.text))
        inputs += [*_seen(features.concepts.confidences[image : image + 1])[0], said]
    return np.array(inputs, dtype=np.float64)


def word_inputs(
    caption: Caption, features: ImageFeatures, image: int, vocabulary: ConceptVocabulary
) -> dict[str, list[float]]:
    """For each word that names a concept: how sure its tokens were, and how sure the tagger is of it."""
    confidence = _confidence_of(features, image)
    found: dict[str, list[float]] = {}
    for word, sure in zip(caption.text.split(), word_confidences(caption), strict=False):
        concept = vocabulary.number(word)
        if concept is not None:
            seen = confidence.get(concept, 0.0)
            found[word] = [math.log(max(sure, _TINY)), seen, math.log(seen + 0.01)]
    return found


def word_confidences(caption: Caption) -> list[float]:
    """Probability of each word: the product of its tokens'."""
    return [
        math.prod(caption.confidences[position] for position in word)
        for word in word_positions(caption.tokens)
    ]


def _confidence_of(features: ImageFeatures, image: int) -> dict[int, float]:
    """Concepts of one image with the tagger's confidence in each."""
    assert features.concepts is not None
    ids, shares = (
        to_host(part)[image].tolist() for part in (features.concepts.ids, features.concepts.confidences)
    )
    return {concept: share for concept, share in zip(ids, shares, strict=True) if concept != NO_CONCEPT}
