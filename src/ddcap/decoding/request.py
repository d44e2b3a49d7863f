"""What is asked of the captions of a batch of pictures, and how it is met."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ddcap.data.concepts import ConceptEdits
from ddcap.data.images import ImageSource
from ddcap.decoding.caption import Caption, ImageResult, build_captions
from ddcap.decoding.confidence import Confidence
from ddcap.decoding.constrained import Frame
from ddcap.decoding.constraints import Constraints, Vocabulary
from ddcap.decoding.diverse import diverse_captions
from ddcap.decoding.generate import generate, generate_constrained
from ddcap.decoding.trace import DecodingResult
from ddcap.errors import DDCapError, ImageError
from ddcap.model.config import ModelConfig
from ddcap.model.features import ImageFeatures
from ddcap.settings import DecodingSettings

PixelsOrError = np.ndarray | ImageError
"""A picture that was read, or why it was not."""


@dataclass(frozen=True)
class CaptionRequest:
    """How many captions of each picture, made how, and like what.

    Attributes:
        settings: of the decoder.
        num: captions of each picture. Best-first, each says something else than those before it; by other
            decoders, or with a temperature, each is another length or another draw.
        constraints: what every caption has to be like.
        lengths: one caption of each of these lengths, instead of `num`.
        edits: changes to the concepts that are seen.
        confidence: of the model, if it is calibrated.
    """

    settings: DecodingSettings
    num: int = 1
    constraints: Constraints = Constraints()  # noqa: RUF009 (frozen)
    lengths: tuple[int, ...] | None = None
    edits: tuple[ConceptEdits, ...] = ()
    confidence: Confidence | None = None

    def checked(self, model: ModelConfig, vocabulary: Vocabulary) -> CaptionRequest:
        """The same request, if a model can meet it: several captions of one length have to be drawn.

        Raises:
            DDCapError: if it cannot.
        """
        longest, asked = model.model.max_length, self.settings
        if not 1 <= self.num <= longest:
            raise DDCapError(f"num={self.num}: out of range; ask for 1 to {longest} captions")
        if not self.constraints.is_empty:
            Frame(self.constraints, vocabulary, longest)  # refuses what no caption can be like
        predicts_lengths = asked.length == "predicted" and model.model.length_prediction
        differ = predicts_lengths or (asked.candidates > 1 and asked.length != "predicted")
        if self.num == 1 or differ or asked.temperature or self._varies_words(model):
            return self
        return replace(self, settings=replace(asked, temperature=1.0, beams=1))

    def results(
        self,
        model: Any,
        images: Sequence[ImageSource],
        pixels: Sequence[PixelsOrError],
        vocabulary: Vocabulary,
        generator: np.random.Generator,
    ) -> list[ImageResult]:
        """What becomes of each picture; see `captions`.

        Args:
            model: in evaluation mode.
            images: where each is from.
            pixels: (3, H, W) of each, or why there are none.
            vocabulary: of the model's tokenizer.
            generator: of the decoders that draw.
        """
        read = [one for one in pixels if isinstance(one, np.ndarray)]
        left: Iterator[tuple[Caption, ...]] = iter(())
        if read:
            seen = features = model.encode(np.stack(read))
            for edit in self.edits:
                features = features.edited(edit)
            found = self.captions(model, features, vocabulary, generator)
            left = iter(found if self.confidence is None else _judged(found, seen, self.confidence, model))
        return [
            ImageResult(image, next(left), None)
            if isinstance(one, np.ndarray)
            else ImageResult(image, (), str(one))
            for image, one in zip(images, pixels, strict=True)
        ]

    def captions(
        self, model: Any, features: ImageFeatures, vocabulary: Vocabulary, generator: np.random.Generator
    ) -> list[tuple[Caption, ...]]:
        """The captions of each picture.

        Args:
            model: in evaluation mode.
            features: of I images.
            vocabulary: of the model's tokenizer.
            generator: of the decoders that draw.
        """
        tokenizer = vocabulary.tokenizer

        def once(bias: np.ndarray | None = None, num: int = 1) -> DecodingResult:
            shared: dict[str, Any] = {"generator": generator, "captions_per_image": num, "bias": bias}
            if self.lengths is None and self.constraints.is_empty:
                return generate(model, features, self.settings, tokenizer.end_id, **shared)
            return generate_constrained(
                model, features, self.settings, self.constraints, vocabulary, lengths=self.lengths, **shared
            )

        if self.num == 1 or not self._varies_words(model.config):
            batches = [once(num=self.num)]
        else:
            batches = diverse_captions(once, features.images, self.num, tokenizer)
        parts = [build_captions(batch, range(len(batch.tokens)), tokenizer) for batch in batches]
        return [
            tuple(caption for part in parts for caption in _share(part, image, features.images))
            for image in range(features.images)
        ]

    def _varies_words(self, model: ModelConfig) -> bool:
        """Whether several captions are made to differ in words; else in lengths, or by drawing."""
        is_best_first = (model.model.kind, self.settings.method) == ("diffusion", "best_first")
        return is_best_first and not self.settings.temperature and self.lengths is None


def _judged(
    captions: Sequence[tuple[Caption, ...]], features: ImageFeatures, confidence: Confidence, model: Any
) -> list[tuple[Caption, ...]]:
    """Captions of each image, with how sure the model is."""
    known = confidence.known(features).tolist()
    return [
        tuple(confidence.judge(one, features, image, known[image], model.vocabulary) for one in several)
        for image, several in enumerate(captions)
    ]


def _share(captions: Sequence[Caption], image: int, images: int) -> Sequence[Caption]:
    """Those of one of the images by which they are grouped."""
    each = len(captions) // images
    return captions[image * each : (image + 1) * each]
