"""Image features to decoded captions: choose the lengths, then the decoder that model and settings name."""

from __future__ import annotations

import torch
from torch import Tensor

from ddcap.decoding.guidance import ConceptEvidence, build_predictor, favour_concepts, forbid
from ddcap.decoding.left_to_right import decode_left_to_right
from ddcap.decoding.reverse_process import decode_ancestral, decode_best_first, plan_steps
from ddcap.decoding.trace import DecodingResult
from ddcap.errors import RecipeError
from ddcap.model import CaptioningModel
from ddcap.model.ddcap import DDCapModel
from ddcap.model.encoders import ImageFeatures
from ddcap.model.twin import AutoregressiveModel
from ddcap.settings import DecodingSettings


def choose_lengths(
    model: CaptioningModel, features: ImageFeatures, settings: DecodingSettings, captions_per_image: int = 1
) -> Tensor:
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
                f"length {settings.length} is over this model's longest caption, {longest} tokens; lower it"
            )
        if settings.candidates == 1:
            return torch.full((count,), settings.length, device=model.device)
        near = nearest_lengths(settings.length, captions_per_image, longest)
        return torch.tensor(near, device=model.device).repeat(images)
    logits = model.length_logits(features) if isinstance(model, DDCapModel) else None
    if logits is None:
        return torch.full((count,), longest, device=model.device)
    if captions_per_image > 1:
        return logits.topk(min(captions_per_image, longest), dim=1).indices.flatten() + 1
    if settings.length_rule == "expected":
        classes = torch.arange(1, longest + 1, device=logits.device, dtype=torch.float32)
        return (logits.float().softmax(dim=1) @ classes).round().long()
    return logits.argmax(dim=1) + 1


def nearest_lengths(length: int, count: int, longest: int) -> list[int]:
    """The `count` lengths nearest to `length`, itself first, longer before shorter; from 1 to `longest`."""
    return sorted(range(1, longest + 1), key=lambda other: (abs(other - length), -other))[:count]


def decode(
    model: CaptioningModel,
    features: ImageFeatures,
    tokens: Tensor,
    lengths: Tensor,
    settings: DecodingSettings,
    end_id: int,
    *,
    may_end: bool = True,
    generator: torch.Generator | None = None,
    captions_per_image: int = 1,
) -> DecodingResult:
    """Fill every MASK of `tokens` (B, L), by the decoder that `settings` name; given words stay.

    Without `may_end` no MASK becomes the end token: words that are given behind it would be lost.
    """
    keys_values = model.project_memory(features)
    concepts = concept_evidence(model, features, settings, captions_per_image)
    if isinstance(model, AutoregressiveModel):
        return decode_left_to_right(
            model,
            keys_values,
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
    predict = build_predictor(model, keys_values, lengths, settings.guidance, captions_per_image)
    if concepts is not None and settings.uses_concepts:
        predict = favour_concepts(predict, concepts)
    if not may_end:
        predict = forbid(predict, end_id)
    if settings.method == "ancestral":
        temperature = settings.temperature or 1.0  # the reverse process is a sampler; 0 means "not set" here
        return decode_ancestral(
            predict, tokens, lengths, model.schedule, settings.steps, temperature, generator
        )
    blanks = (tokens == model.mask_id).sum(dim=1)
    plan = plan_steps(blanks, lengths, model.config.diffusion.steps, settings.steps, settings.schedule)
    return decode_best_first(predict, tokens, lengths, plan, model.mask_id, settings.temperature, generator)


def concept_evidence(
    model: CaptioningModel, features: ImageFeatures, settings: DecodingSettings, captions_per_image: int
) -> ConceptEvidence | None:
    """What the pictures' concepts say about captions; None if nobody asks, or the model sees none."""
    asked = settings.uses_concepts or settings.concept_weight
    if not asked or features.concepts is None or model.spelling is None:
        return None
    return ConceptEvidence.of(
        features.concepts,
        model.spelling,
        model.mask_id,
        captions_per_image,
        bonus=settings.concept_bonus,
        repeat_penalty=settings.repeat_penalty,
    )


@torch.no_grad()  # not inference_mode: autocast would cast all weights anew at every step
def generate(
    model: CaptioningModel,
    features: ImageFeatures,
    settings: DecodingSettings,
    end_id: int,
    *,
    generator: torch.Generator | None = None,
    captions_per_image: int = 1,
) -> DecodingResult:
    """Caption I images from all MASK.

    Args:
        model: in evaluation mode.
        features: of I images, on the model's device.
        settings: decoder, steps, guidance, length, temperature.
        end_id: the tokenizer's end token.
        generator: source of randomness, on the model's device; None is enough for a deterministic decoder.
        captions_per_image: captions per image, each with another length if lengths are predicted or
            `settings.candidates` asks for several.

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
    )
    if captions_per_image == 1:
        return result
    evidence = result.evidence(settings.length_penalty)
    concepts = concept_evidence(model, features, settings, captions_per_image)
    if concepts is not None:
        evidence = evidence + settings.concept_weight * concepts.said(result.until(end_id))
    return keep_likeliest(result, evidence, captions_per_image, wanted)


def keep_likeliest(
    result: DecodingResult, evidence: Tensor, captions_per_image: int, wanted: int
) -> DecodingResult:
    """Of each image's captions the `wanted` likeliest, in that order; equal ones as they came.

    Args:
        result: I * captions_per_image captions, grouped by image.
        evidence: (I * captions_per_image,) how likely each is.
        captions_per_image: captions of each image.
        wanted: how many of them to keep; all, if there are fewer.
    """
    evidence = evidence.view(-1, captions_per_image)
    order = evidence.argsort(dim=1, descending=True, stable=True)[:, :wanted]
    first = torch.arange(len(evidence), device=order.device).unsqueeze(1) * captions_per_image
    return result.select((first + order).flatten())


def start_tokens(lengths: Tensor, mask_id: int) -> Tensor:
    """(B,) lengths to (B, L): MASK up to the length, any word behind it."""
    positions = torch.arange(int(lengths.max()), device=lengths.device)
    return torch.where(positions < lengths.unsqueeze(1), mask_id, 0)
