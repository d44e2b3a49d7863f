"""Image features to decoded captions: choose the lengths, then the decoder that model and settings name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ddcap.arrays import Array, array_namespace, device, to_host
from ddcap.data.concepts import ConceptSpelling
from ddcap.decoding.best_first import decode_best_first, plan_steps
from ddcap.decoding.constrained import Frame, padded, place_phrases
from ddcap.decoding.constraints import ConstrainedCaption, Constraints, Vocabulary
from ddcap.decoding.guidance import ConceptEvidence, DenoisingSteps, Predictor
from ddcap.decoding.trace import DecodingResult
from ddcap.errors import DDCapError, RecipeError
from ddcap.model.config import ModelConfig
from ddcap.model.features import ImageFeatures
from ddcap.settings import DecodingSettings


class CaptioningModel(Protocol):
    """What decoding needs of a model, whatever it runs on."""

    config: ModelConfig

    @property
    def mask_id(self) -> int:
        """V, the id of the MASK state."""

    @property
    def spelling(self) -> ConceptSpelling | None:
        """How the words of its concepts are spelled; None if it sees none."""

    def as_array(self, values: np.ndarray) -> Array:
        """Numbers where the model computes."""

    def length_logits(self, features: ImageFeatures) -> Array | None:
        """(I, max_length) length logits, or None without a length head."""


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


def decode(
    model: CaptioningModel,
    features: ImageFeatures,
    tokens: Array,
    lengths: Array,
    settings: DecodingSettings,
    end_id: int,
    *,
    may_end: bool = True,
    generator: np.random.Generator | None = None,
    captions_per_image: int = 1,
    concepts: ConceptEvidence | None = None,
    constrained: Sequence[ConstrainedCaption] | None = None,
    bias: np.ndarray | None = None,
    steps: DenoisingSteps | None = None,
) -> DecodingResult:
    """Fill every MASK of `tokens` (B, L), by the decoder that `settings` name; given words stay.

    Without `may_end` no MASK becomes the end token: words that are given behind it would be lost. `concepts`
    are `concept_evidence` of the B captions, from who has it already. `constrained` are the same captions,
    where only some tokens are allowed. `bias` (I, V) is added to the logits of all positions of a picture's
    captions. `steps` are the model's denoising steps for these pictures, from who has them already.
    """
    if constrained is not None and (model.config.model.kind, settings.method) != ("diffusion", "best_first"):
        raise DDCapError(
            "constraints on words need a diffusion model and method=best_first; use these, or remove them"
        )
    if constrained is not None and settings.order != "probability":
        raise DDCapError(
            f"order={settings.order}: cannot be combined with constraints on words; set order=probability"
        )
    if concepts is None:
        concepts = concept_evidence(model, features, settings, captions_per_image)
    runtime: Any = model  # each decoder takes what it needs beyond the protocol
    if model.config.model.kind == "autoregressive":
        from ddcap.decoding.left_to_right import decode_left_to_right

        return decode_left_to_right(
            runtime,
            features,
            tokens,
            lengths,
            end_id,
            may_end=may_end,
            beams=settings.beams,
            length_penalty=settings.length_penalty,
            temperature=settings.temperature,
            generator=generator,
            concepts=concepts,
            concept_weight=settings.concept_weight,
        )
    predictor = Predictor(
        steps or runtime.denoising_steps(features, with_image_free=settings.guidance != 1),
        lengths,
        settings.guidance,
        concepts,
        barred=None if may_end else end_id,
        bias=None if bias is None else model.as_array(bias.repeat(captions_per_image, axis=0)),
    )
    if settings.method == "ancestral":
        if not hasattr(runtime, "schedule"):
            raise DDCapError(
                "method=ancestral: ONNX graphs decode best-first only; load the model with runtime='torch'"
            )
        from ddcap.decoding.ancestral import decode_ancestral

        temperature = settings.temperature or 1.0  # the reverse process is a sampler; 0 means "not set" here
        return decode_ancestral(
            predictor.log_probabilities,
            tokens,
            lengths,
            runtime.schedule,
            settings.steps,
            temperature,
            generator,
        )
    blanks = array_namespace(tokens).sum(tokens == model.mask_id, axis=1)
    plan = plan_steps(blanks, lengths, model.config.diffusion.steps, settings.steps, settings.schedule)
    return decode_best_first(
        predictor,
        tokens,
        lengths,
        plan,
        model.mask_id,
        settings.temperature,
        generator,
        captions_per_image,
        settings.distinct,
        constrained,
        settings.order,
    )


def concept_evidence(
    model: CaptioningModel, features: ImageFeatures, settings: DecodingSettings, captions_per_image: int
) -> ConceptEvidence | None:
    """What the pictures' concepts say about captions; None if nobody asks, or the model sees none."""
    asked = settings.concept_bonus or settings.repeat_penalty or settings.concept_weight
    if not asked or features.concepts is None or model.spelling is None:
        return None
    evidence = ConceptEvidence.of(
        features.concepts,
        model.spelling,
        model.mask_id,
        bonus=settings.concept_bonus,
        repeat_penalty=settings.repeat_penalty,
    )
    return evidence.repeat(captions_per_image)


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
        captions_per_image: captions per image, each with another length if lengths are predicted or
            `settings.candidates` asks for several.
        bias: (I, V) is added to the logits of all positions of a diffusion model's captions.

    Returns:
        I * captions_per_image captions, grouped by image, the likeliest first; of more candidates than that,
        the likeliest. (Fewer, if there are not as many lengths.)
    """
    wanted = captions_per_image
    captions_per_image = max(wanted, settings.candidates)
    lengths = choose_lengths(model, features, settings, captions_per_image)
    captions_per_image = len(lengths) // features.images
    tokens = start_tokens(lengths, model.mask_id)
    if settings.exact_length:
        tokens[:, -1] = end_id  # all captions have this length
    concepts = concept_evidence(model, features, settings, captions_per_image)
    result = decode(
        model,
        features,
        tokens,
        lengths,
        settings,
        end_id,
        may_end=not settings.exact_length,
        generator=generator,
        captions_per_image=captions_per_image,
        concepts=concepts,
        bias=bias,
    )
    return keep_likeliest(result, settings, concepts, end_id, captions_per_image, wanted)


def generate_constrained(
    model: CaptioningModel,
    features: ImageFeatures,
    settings: DecodingSettings,
    constraints: Constraints,
    vocabulary: Vocabulary,
    *,
    lengths: Sequence[int] | None = None,
    generator: np.random.Generator | None = None,
    captions_per_image: int = 1,
    bias: np.ndarray | None = None,
) -> DecodingResult:
    """Caption I images so that every caption obeys.

    Every caption has exactly the length that it starts with, so that no word is cut off: candidates take the
    lengths nearest to the settings' (or the likeliest) one that leave room for what is asked for.

    Args:
        model: in evaluation mode.
        features: of I images, where the model computes.
        settings: decoder, steps, guidance, length, temperature.
        constraints: what captions have to be like.
        vocabulary: of the tokenizer.
        lengths: of the captions of every image, in this order; then none is compared with another.
        generator: source of randomness.
        captions_per_image: captions of each image, the likeliest first.
        bias: (I, V) is added to the logits of all positions.

    Raises:
        DDCapError: if no caption can be like that.
    """
    images, longest = features.images, model.config.model.max_length
    frame = Frame(constraints, vocabulary, longest)
    if lengths is None:
        count = max(captions_per_image, settings.candidates)
        if settings.exact_length:
            frame.check_length(int(settings.length))
            of_images = [[int(settings.length)] * count] * images
        else:
            firsts = to_host(choose_lengths(model, features, settings))
            of_images = [frame.lengths_near(int(first), count) for first in firsts]
            count = min(len(row) for row in of_images)  # as many of each image
            of_images = [row[:count] for row in of_images]
    else:
        for length in lengths:
            frame.check_length(length)
        of_images = [[*lengths]] * images
    count = len(of_images[0])
    captions = [frame.caption(length) for row in of_images for length in row]
    sizes = model.as_array(np.array([len(caption.tokens) for caption in captions]))
    concepts = concept_evidence(model, features, settings, count)
    steps: DenoisingSteps | None = None
    if frame.phrases:
        runtime: Any = model
        steps = runtime.denoising_steps(features, with_image_free=settings.guidance != 1)
        predictor = Predictor(steps, sizes, settings.guidance, concepts, barred=vocabulary.end_id)
        last = model.as_array(np.full(len(captions), model.config.diffusion.steps - 1))
        place_phrases(captions, frame.phrases, predictor, last)
    result = decode(
        model,
        features,
        model.as_array(padded(captions)),
        sizes,
        settings,
        vocabulary.end_id,
        may_end=False,
        generator=generator,
        captions_per_image=count,
        concepts=concepts,
        constrained=captions,
        bias=bias,
        steps=steps,
    )
    if lengths is not None:
        return result
    return keep_likeliest(result, settings, concepts, vocabulary.end_id, count, captions_per_image)


def keep_likeliest(
    result: DecodingResult,
    settings: DecodingSettings,
    concepts: ConceptEvidence | None,
    end_id: int,
    captions_per_image: int,
    wanted: int,
) -> DecodingResult:
    """Of each image's captions the `wanted` likeliest, in that order; equal ones as they came.

    Args:
        result: I * captions_per_image captions, grouped by image.
        settings: how length and concepts count.
        concepts: of the captions, if they are to count.
        end_id: the tokenizer's end token.
        captions_per_image: captions of each image.
        wanted: how many of them to keep; all, if there are fewer.
    """
    if captions_per_image == 1:
        return result
    evidence = result.evidence(settings.length_penalty)
    if concepts is not None:
        evidence = evidence + settings.concept_weight * concepts.said(result.until(end_id))
    xp = array_namespace(evidence)
    evidence = xp.reshape(evidence, (-1, captions_per_image))
    order = xp.argsort(evidence, axis=1, descending=True, stable=True)[:, :wanted]
    first = xp.arange(evidence.shape[0], device=device(order))[:, None] * captions_per_image
    return result.select(xp.reshape(first + order, (-1,)))


def start_tokens(lengths: Array, mask_id: int) -> Array:
    """(B,) lengths to (B, L): MASK up to the length, any word behind it."""
    xp = array_namespace(lengths)
    positions = xp.arange(int(lengths.max()), device=device(lengths))
    return xp.where(positions < lengths[:, None], mask_id, xp.zeros_like(lengths)[:, None])
