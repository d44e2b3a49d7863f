"""The facade: load once, images in, captions out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ddcap.caption import Caption, ImageResult, build_captions
from ddcap.data.concept_edits import ConceptEdits
from ddcap.data.images import ImageSource
from ddcap.decoding.generate import generate
from ddcap.decoding.infilling import infill, parse_template
from ddcap.errors import DDCapError, ImageError, RecipeError
from ddcap.loaded_model import LoadedModel
from ddcap.model.image_encoder import ImageFeatures
from ddcap.recipe import DecodingSettings


class Captioner(LoadedModel):
    """Captions images with a trained model; make one by `from_pretrained` and keep it."""

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        seed: int = 0,
        batch_size: int = 16,
        concepts: str | Sequence[str] | None = None,
        **settings: Any,
    ) -> list[Caption]:
        """One caption per image.

        Args:
            images: paths or PIL images; one or a list.
            seed: of the decoders that draw; the same seed and batch give the same captions.
            batch_size: images computed at once.
            concepts: what the images show, in place of what is seen: "cat, window"; or changes: "+cat, -dog".
            settings: decoding settings to change, see `DecodingSettings`: method, steps, guidance, length,
                temperature, ...

        Raises:
            ImageError: for the first image that cannot be read; `caption_each` goes on instead.
            RecipeError: if a decoding setting is unknown or wrong.
        """
        many: Sequence[ImageSource] = [images] if isinstance(images, ImageSource) else images
        captions = []
        results = self.caption_each(many, seed=seed, batch_size=batch_size, concepts=concepts, **settings)
        for result in results:
            if result.error is not None:
                raise ImageError(result.error)
            captions.append(result.captions[0])
        return captions

    def caption_each(
        self,
        images: Sequence[ImageSource],
        *,
        num: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        concepts: str | Sequence[str] | None = None,
        **settings: Any,
    ) -> Iterator[ImageResult]:
        """Caption many images, one result each, in order; a bad image gives an error and the others go on.

        Args:
            images: paths or PIL images.
            num: captions per image, the likeliest first: each has another length, or, if the length is
                fixed and there are no candidates, each is another draw (at temperature 1, unless one is
                given).
            seed: of the decoders that draw.
            batch_size: images computed at once.
            concepts: see `__call__`.
            settings: decoding settings to change.
        """
        edits = None if concepts is None else ConceptEdits.parse(concepts, self.model.vocabulary)
        longest = self.model.config.model.max_length
        if not 1 <= num <= longest:
            raise DDCapError(f"num={num}: ask for 1 to {longest} captions")
        if batch_size < 1:
            raise DDCapError(f"batch_size={batch_size}: at least one image has to be computed at once")
        decoding = self.settings(**settings)
        predicts_lengths = decoding.length == "predicted" and self.model.config.model.length_prediction
        lengths_differ = predicts_lengths or (decoding.candidates > 1 and decoding.length != "predicted")
        if num > 1 and not lengths_differ and not decoding.temperature:
            decoding = replace(decoding, temperature=1.0, beams=1)  # of one length only draws can differ
        generator = torch.Generator(self.model.device).manual_seed(seed)
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            yield from self._caption_batch(part, num, decoding, generator, edits)

    def infill(
        self,
        image: ImageSource,
        template: str,
        *,
        seed: int = 0,
        concepts: str | Sequence[str] | None = None,
        **settings: Any,
    ) -> Caption:
        """Fill the blanks of a caption.

        Args:
            image: path or PIL image.
            template: given words with blanks: `___` of any width, `[3]` of three tokens.
            seed: of the decoders that draw.
            concepts: see `__call__`.
            settings: decoding settings to change; `length` is that of the filled caption.

        Raises:
            ImageError: if the image cannot be read.
            DDCapError: if the template has no blank, is too long, or cannot get the length asked for.
            RecipeError: if a decoding setting is unknown or wrong.
        """
        if settings.get("candidates") not in (None, 1):
            raise RecipeError(
                f"candidates={settings['candidates']}: infilling chooses among the widths of its blanks; "
                "leave candidates out"
            )
        decoding = self.settings(**settings)
        if settings.get("length") is None:  # the model's own length is for captions without a template
            decoding = replace(decoding, exact_length=False)
        parsed = parse_template(template, self.tokenizer)
        features = self.features([image])
        if concepts is not None:
            features = edited(features, ConceptEdits.parse(concepts, self.model.vocabulary))
        generator = torch.Generator(self.model.device).manual_seed(seed)
        with self.computing():
            filled = infill(self.model, features, parsed, decoding, self.tokenizer.end_id, generator)
        return build_captions(filled.result, [filled.row], self.tokenizer)[0]

    def _caption_batch(
        self,
        images: Sequence[ImageSource],
        num: int,
        decoding: DecodingSettings,
        generator: torch.Generator,
        edits: ConceptEdits | None,
    ) -> Iterator[ImageResult]:
        pixels: list[Tensor] = []
        errors: list[str | None] = []
        for image in images:
            try:
                pixels.append(self.pixels(image))
                errors.append(None)
            except ImageError as error:
                errors.append(str(error))
        captions = iter(self._decode(pixels, num, decoding, generator, edits) if pixels else [])
        for image, reason in zip(images, errors, strict=True):
            yield ImageResult(image, () if reason else next(captions), reason)

    @torch.inference_mode()
    def _decode(
        self,
        pixels: list[Tensor],
        num: int,
        decoding: DecodingSettings,
        generator: torch.Generator,
        edits: ConceptEdits | None,
    ) -> list[tuple[Caption, ...]]:
        features = self._encode(pixels)
        if edits is not None:
            features = edited(features, edits)
        with self.computing():
            result = generate(
                self.model,
                features,
                decoding,
                self.tokenizer.end_id,
                generator=generator,
                captions_per_image=num,
            )
        flat = build_captions(result, range(len(result.tokens)), self.tokenizer)
        per_image = len(flat) // len(pixels)
        return [tuple(flat[start : start + per_image]) for start in range(0, len(flat), per_image)]


def edited(features: ImageFeatures, edits: ConceptEdits) -> ImageFeatures:
    """The same features with the concepts that a person says are there."""
    assert features.concepts is not None  # a model with a vocabulary sees some
    return replace(features, concepts=edits.apply(features.concepts))
