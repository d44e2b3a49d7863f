"""From candidates to captions: they are ranked, written out, and told how sure the model is of them.

All captions end here, whole or constrained, infilled or rewritten.

Shapes: I images, B captions (B = I * K, grouped by image), C captions, L positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ddcap.arrays import Array, array_namespace, like, to_host
from ddcap.data.concepts import ConceptVocabulary
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.caption import Caption, build_captions
from ddcap.decoding.confidence import Confidence
from ddcap.decoding.trace import DecodingResult
from ddcap.model.features import ImageFeatures
from ddcap.model.protocol import CaptioningModel


class Judge(Protocol):
    """A second opinion on decoded captions."""

    def score(self, tokens: Array, lengths: Array, features: ImageFeatures) -> Array:
        """(C,) log-likelihoods of captions.

        Args:
            tokens: (C, L), the end token last; what lies past the lengths is not to be read.
            lengths: (C,).
            features: of I images, memory included; C is a multiple of I, grouped by image.
        """


def judged(
    scores: Array,
    result: DecodingResult,
    features: ImageFeatures,
    judge: Judge | None,
    length_penalty: float,
    weight: float = 0.5,
) -> Array:
    """Mix scores with a judge's log-likelihoods, divided by tokens ** length_penalty as they are.

    Args:
        scores: (C,) of the captions so far.
        result: the captions.
        features: of their images.
        judge: None leaves the scores as they are.
        length_penalty: 1 takes the mean per token, 0 the sum.
        weight: share of the judge.
    """
    if judge is None:
        return scores
    xp = array_namespace(scores)
    said = judge.score(result.tokens, result.lengths, features)
    said = said / xp.astype(result.lengths, xp.float32) ** length_penalty
    return (1 - weight) * scores + weight * said


@dataclass(frozen=True)
class Candidates:
    """Decoded captions that compete for the place of an image's caption.

    Attributes:
        result: B captions.
        per_image: K.
        scores: (B,) higher is better; None leaves them as they came.
        survives: (B,) False for those that were pruned and rank behind the others; None for none.
    """

    result: DecodingResult
    per_image: int
    scores: Array | None
    survives: np.ndarray | None = None

    @property
    def row(self) -> int:
        """The best caption of the first image."""
        return 0 if self.scores is None else int(self._order()[0, 0])

    def best(self, wanted: int = 1) -> DecodingResult:
        """Of each image's candidates the `wanted` best, in that order; equal ones as they came."""
        if self.scores is None:
            return self.result
        order = self._order()[:, :wanted]
        first = np.arange(len(order))[:, None] * self.per_image
        return self.result.select(like((first + order).reshape(-1), self.scores))

    def _order(self) -> np.ndarray:
        """(I, K) each image's candidates, the best first."""
        scores = to_host(self.scores).reshape(-1, self.per_image)
        survives = np.ones_like(scores) if self.survives is None else self.survives.reshape(scores.shape)
        return np.lexsort((-scores, ~survives.astype(bool)), axis=1)


@dataclass(frozen=True)
class Confident:
    """The calibration of a model and what it is applied to: the confidence of captions.

    Attributes:
        confidence: of the model.
        seen: features of I images, as the model sees them, whatever a person says of them.
        vocabulary: of the model's concepts, or None.
    """

    confidence: Confidence
    seen: ImageFeatures
    vocabulary: ConceptVocabulary | None

    @classmethod
    def of(
        cls, confidence: Confidence | None, seen: ImageFeatures, model: CaptioningModel
    ) -> Confident | None:
        """Put together what `finish` needs; None for a model that is not calibrated."""
        return None if confidence is None else cls(confidence, seen, model.vocabulary)


def finish(
    found: Sequence[Candidates],
    tokenizer: CaptionTokenizer,
    *,
    wanted: int = 1,
    images: int = 1,
    confident: Confident | None = None,
) -> list[tuple[Caption, ...]]:
    """Rank candidates, write the best of them out, and say how sure the model is.

    Args:
        found: decodings of the same images, one after the other; an image gets the best of each.
        tokenizer: of the model.
        wanted: captions to keep of each decoding.
        images: I.
        confident: of a calibrated model.

    Returns:
        The captions of each image.
    """
    batches = []
    for one in found:
        best = one.best(wanted)
        batches.append(build_captions(best, range(len(best.tokens)), tokenizer))
    captions = [
        tuple(caption for batch in batches for caption in _share(batch, image, images))
        for image in range(images)
    ]
    if confident is None:
        return captions
    known = confident.confidence.known(confident.seen).tolist()
    return [
        tuple(
            confident.confidence.judge(one, confident.seen, image, known[image], confident.vocabulary)
            for one in several
        )
        for image, several in enumerate(captions)
    ]


def _share(captions: Sequence[Caption], image: int, images: int) -> Sequence[Caption]:
    """Those of one of the images by which they are grouped."""
    each = len(captions) // images
    return captions[image * each : (image + 1) * each]
