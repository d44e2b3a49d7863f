"""What is asked of the captions of a batch of pictures, and how it is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ddcap.arrays import Array
from ddcap.data.concepts import ConceptEdits
from ddcap.data.images import ImageSource
from ddcap.decoding.caption import Caption, ImageResult
from ddcap.decoding.confidence import Confidence
from ddcap.decoding.constrained import Frame
from ddcap.decoding.constraints import Constraints, Vocabulary
from ddcap.decoding.diverse import diverse_captions
from ddcap.decoding.finishing import Candidates, Confident, finish
from ddcap.decoding.generate import constrained_captions, whole_captions
from ddcap.decoding.sampler import Sampler
from ddcap.errors import DDCapError, ImageError
from ddcap.model.config import ModelConfig
from ddcap.model.features import ImageFeatures
from ddcap.model.protocol import CaptioningModel
from ddcap.settings import DecodingSettings

PixelsOrError = np.ndarray | ImageError
"""A picture that was read, or why it was not."""


@dataclass(frozen=True)
class CaptionRequest:
    """How many captions of each picture, made how, and like what.

    Attributes:
        settings: of the decoder.
        num: captions of each picture. Best-first, each says something else than those before it, and there
            are fewer where no other one is left; by other decoders, or with a temperature, each is another
            length or another draw.
        constraints: what every caption has to be like.
        lengths: one caption of each of these lengths, instead of `num`.
        edits: changes to the concepts that are seen.
        confidence: of the model, if it is calibrated.
        watch: is told the captions (B, L) before each step of a diffusion model, MASK where there is no word
            yet.
    """

    settings: DecodingSettings
    num: int = 1
    constraints: Constraints = Constraints()  # noqa: RUF009 (frozen)
    lengths: tuple[int, ...] | None = None
    edits: tuple[ConceptEdits, ...] = ()
    confidence: Confidence | None = None
    watch: Callable[[Array], None] | None = None

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
        model: CaptioningModel,
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
            left = iter(self.captions(model, features, vocabulary, generator, seen))
        asked = self.num if self.lengths is None else len(self.lengths)
        return [
            ImageResult(image, next(left), None, asked)
            if isinstance(one, np.ndarray)
            else ImageResult(image, (), str(one), asked)
            for image, one in zip(images, pixels, strict=True)
        ]

    def captions(
        self,
        model: CaptioningModel,
        features: ImageFeatures,
        vocabulary: Vocabulary,
        generator: np.random.Generator,
        seen: ImageFeatures | None = None,
    ) -> list[tuple[Caption, ...]]:
        """The captions of each picture; fewer than `num`, if what is asked leaves fewer that differ.

        Args:
            model: in evaluation mode.
            features: of I images.
            vocabulary: of the model's tokenizer.
            generator: of the decoders that draw.
            seen: the features as the model sees them, if a person has changed the concepts.
        """
        tokenizer = vocabulary.tokenizer
        sampler = Sampler(
            model, features, self.settings, tokenizer.end_id, generator=generator, watch=self.watch
        )

        def once(bias: np.ndarray | None = None, num: int = 1) -> Candidates:
            if self.lengths is None and self.constraints.is_empty:
                return whole_captions(sampler, num, bias)
            return constrained_captions(
                sampler, self.constraints, vocabulary, lengths=self.lengths, wanted=num, bias=bias
            )

        is_diverse = self.num > 1 and self._varies_words(model.config)
        if is_diverse:
            found = diverse_captions(once, features.images, self.num, tokenizer)
        else:
            found = [once(num=self.num)]
        captions = finish(
            found,
            tokenizer,
            wanted=1 if is_diverse else self.num,
            images=features.images,
            confident=Confident.of(self.confidence, seen or features, model),
        )
        return [_different(several) for several in captions] if is_diverse else captions

    def _varies_words(self, model: ModelConfig) -> bool:
        """Whether several captions are made to differ in words; else in lengths, or by drawing."""
        is_best_first = (model.model.kind, self.settings.method) == ("diffusion", "best_first")
        return is_best_first and not self.settings.temperature and self.lengths is None


def _different(captions: Sequence[Caption]) -> tuple[Caption, ...]:
    """The first of those with the same text."""
    found: dict[str, Caption] = {}
    for caption in captions:
        found.setdefault(caption.text, caption)
    return tuple(found.values())
