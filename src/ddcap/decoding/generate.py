"""Images to captions: lengths are chosen, a sampler fills drafts of these lengths, the best are returned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ddcap.arrays import Array, array_namespace, device, to_host
from ddcap.data.concepts import ConceptEdits
from ddcap.data.images import ImageSource
from ddcap.decoding.allowed_tokens import Vocabulary
from ddcap.decoding.caption import Caption, ImageResult
from ddcap.decoding.confidence import Confidence
from ddcap.decoding.constrained import Frame, padded, place_phrases
from ddcap.decoding.constraints import Constraints
from ddcap.decoding.diverse import diverse_captions
from ddcap.decoding.finishing import Candidates, Confident, finish
from ddcap.decoding.sampler import Drafts, Sampler
from ddcap.decoding.trace import DecodingResult
from ddcap.errors import DDCapError, ImageError, RecipeError
from ddcap.model.config import ModelConfig
from ddcap.model.features import ImageFeatures
from ddcap.model.protocol import CaptioningModel
from ddcap.settings import DecodingSettings

PixelsOrError = np.ndarray | ImageError
"""An image that was read, or why it was not."""


def choose_lengths(
    model: CaptioningModel, features: ImageFeatures, settings: DecodingSettings, captions_per_image: int = 1
) -> Array:
    """Caption lengths (I * captions_per_image,), grouped by image, end token included.

    A fixed length goes first, then the length head; without one every caption has the full `max_length`. With
    several captions per image, caption k takes the k-th likeliest length; around a fixed length, if
    `settings.candidates` asks for several, the k-th nearest one, else the same.

    Raises:
        RecipeError: if the fixed length is over the model's longest caption.
    """
    images, longest = features.images, model.config.model.max_length
    count = images * captions_per_image
    if isinstance(settings.length, int):
        if settings.length > longest:
            raise RecipeError(
                f"length {settings.length}: this model's longest caption has {longest} tokens; lower it"
            )
        if settings.candidates == 1:
            return model.as_array(np.full(count, settings.length))
        near = nearest_lengths(settings.length, captions_per_image, longest)
        return model.as_array(np.tile(near, images))
    logits = model.length_logits(features)
    if logits is None:
        return model.as_array(np.full(count, longest))
    xp = array_namespace(logits)
    if captions_per_image > 1:
        ranked = xp.argsort(logits, axis=1, descending=True, stable=True)
        return xp.reshape(ranked[:, :captions_per_image], (-1,)) + 1
    if settings.length_rule == "expected":
        weights = xp.exp(logits - xp.max(logits, axis=1, keepdims=True))  # (I, max_length)
        classes = xp.arange(1, longest + 1, dtype=xp.float32, device=device(logits))
        mean = xp.sum(weights * classes, axis=1) / xp.sum(weights, axis=1)
        return xp.astype(xp.round(mean), xp.int64)
    return xp.argmax(logits, axis=1) + 1


def nearest_lengths(length: int, count: int, longest: int) -> list[int]:
    """The `count` lengths nearest to `length`, itself first, longer before shorter; from 1 to `longest`."""
    return sorted(range(1, longest + 1), key=lambda other: (abs(other - length), -other))[:count]


def generate(
    model: CaptioningModel,
    features: ImageFeatures,
    settings: DecodingSettings,
    end_id: int,
    *,
    generator: np.random.Generator | None = None,
    captions_per_image: int = 1,
    bias: np.ndarray | None = None,
) -> DecodingResult:
    """Caption I images from all MASK.

    Args:
        model: in evaluation mode.
        features: of I images, where the model computes.
        settings: decoder, steps, guidance, length, temperature.
        end_id: the tokenizer's end token.
        generator: source of randomness; None is enough for a deterministic decoder.
        captions_per_image: captions per image, see `whole_captions`.
        bias: (I, V) is added to the logits of all positions of a diffusion model's captions.

    Returns:
        I * captions_per_image captions, grouped by image, the likeliest first; of more candidates than that,
        the likeliest. (Fewer, if there are not as many lengths.)
    """
    sampler = Sampler(model, features, settings, end_id, generator=generator)
    return whole_captions(sampler, captions_per_image, bias).best(captions_per_image)


def whole_captions(sampler: Sampler, wanted: int = 1, bias: np.ndarray | None = None) -> Candidates:
    """Decode captions from all MASK.

    Args:
        sampler: of the images.
        wanted: captions of each image that are wanted, at least; so many are finished, even if the settings
            prune more. Each has another length if lengths are predicted or `settings.candidates` asks for
            several.
        bias: (I, V) is added to the logits of all positions of a diffusion model's captions.
    """
    model, settings, images = sampler.model, sampler.settings, sampler.features.images
    lengths = choose_lengths(model, sampler.features, settings, max(wanted, settings.candidates))
    tokens = start_tokens(lengths, model.mask_id)
    if settings.exact_length:
        tokens[:, -1] = sampler.end_id  # all captions have this length
    per_image = len(lengths) // images
    drafts = Drafts(tokens, lengths, per_image, may_end=not settings.exact_length, wanted=wanted)
    return sampler.candidates(drafts, bias)


def constrained_captions(
    sampler: Sampler,
    constraints: Constraints,
    vocabulary: Vocabulary,
    *,
    lengths: Sequence[int] | None = None,
    wanted: int = 1,
    bias: np.ndarray | None = None,
) -> Candidates:
    """Decode captions that obey.

    Every caption has exactly the length that it starts with, so that no word is cut off: candidates take the
    lengths nearest to the settings' (or the likeliest) one that leave room for what is asked for.

    Args:
        sampler: of the images.
        constraints: what captions have to be like.
        vocabulary: of the tokenizer.
        lengths: of the captions of every image, in this order; then none is compared with another.
        wanted: captions of each image that are wanted, at least; see `whole_captions`.
        bias: (I, V) is added to the logits of all positions.

    Raises:
        DDCapError: if no caption can be like that.
    """
    model, settings, images = sampler.model, sampler.settings, sampler.features.images
    frame = Frame(constraints, vocabulary, model.config.model.max_length)
    if lengths is None:
        count = max(wanted, settings.candidates)
        if settings.exact_length:
            frame.check_length(int(settings.length))
            of_images = [[int(settings.length)] * count] * images
        else:
            firsts = to_host(choose_lengths(model, sampler.features, settings))
            of_images = [frame.lengths_near(int(first), count) for first in firsts]
            count = min(len(row) for row in of_images)  # as many of each image
            of_images = [row[:count] for row in of_images]
    else:
        for length in lengths:
            frame.check_length(length)
        of_images = [[*lengths]] * images
    captions = [frame.caption(length) for row in of_images for length in row]

    def drafts() -> Drafts:
        sizes = model.as_array(np.array([len(caption.tokens) for caption in captions]))
        tokens = model.as_array(padded(captions))
        return Drafts(tokens, sizes, len(of_images[0]), may_end=False, allowed=captions, wanted=wanted)

    if frame.phrases:
        last = model.as_array(np.full(len(captions), model.config.diffusion.steps - 1))
        place_phrases(captions, frame.phrases, sampler.predictor(drafts()), last)
    if lengths is not None:
        return Candidates(sampler.fill(drafts(), bias), len(lengths), None)
    return sampler.candidates(drafts(), bias)


def start_tokens(lengths: Array, mask_id: int) -> Array:
    """(B,) lengths to (B, L): MASK up to the length, any word behind it."""
    xp = array_namespace(lengths)
    positions = xp.arange(int(lengths.max()), device=device(lengths))
    return xp.where(positions < lengths[:, None], mask_id, xp.zeros_like(lengths)[:, None])


@dataclass(frozen=True)
class CaptionRequest:
    """A request for captions: how many of each image, decoded how, under which constraints.

    Attributes:
        settings: of the decoder.
        num: captions of each image. Best-first, each says something else than those before it, and there
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
        features: ImageFeatures | None = None,
    ) -> list[ImageResult]:
        """Caption the images that could be read; see `captions`.

        Args:
            model: in evaluation mode.
            images: where each is from.
            pixels: (3, H, W) of each, or why there are none.
            vocabulary: of the model's tokenizer.
            generator: of the decoders that draw.
            features: of the images that could be read, if they are encoded.
        """
        read = [one for one in pixels if isinstance(one, np.ndarray)]
        left: Iterator[tuple[Caption, ...]] = iter(())
        if read:
            seen = features = model.encode(np.stack(read)) if features is None else features
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
        """The captions of each image; fewer than `num`, if what is asked leaves fewer that differ.

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
        """Return True if several captions are made to differ in words; else in lengths, or by drawing."""
        is_best_first = (model.model.kind, self.settings.method) == ("diffusion", "best_first")
        return is_best_first and not self.settings.temperature and self.lengths is None


def _different(captions: Sequence[Caption]) -> tuple[Caption, ...]:
    """The first of those with the same text."""
    found: dict[str, Caption] = {}
    for caption in captions:
        found.setdefault(caption.text, caption)
    return tuple(found.values())
