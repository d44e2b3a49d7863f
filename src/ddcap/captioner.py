"""The facade: load once, images in, captions out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ddcap.caption import Caption, ImageResult, build_captions
from ddcap.data.images import ImageSource, load_image
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.generate import generate
from ddcap.decoding.infilling import infill, parse_template
from ddcap.errors import CheckpointError, DDCapError, ImageError, RecipeError
from ddcap.hub import is_folder_name
from ddcap.machine import computes_bfloat16, computing
from ddcap.model.image_encoder import ImageFeatures
from ddcap.model.kinds import CaptioningModel, load_model
from ddcap.model_folder import DEFAULT_MODEL, find_model
from ddcap.publishing import upload, write_card
from ddcap.recipe import DecodingSettings
from ddcap.settings import dump_settings, parse_settings

Precision = Literal["auto", "float32", "bfloat16"]


class Captioner:
    """Captions images with a trained model; make one by `from_pretrained` and keep it.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        precision: what forward passes compute in: "float32"; "bfloat16", about twice as fast where the
            machine has it, and with other captions where two words are nearly as likely; "auto" takes
            bfloat16 where the machine has it.

    Attributes:
        precision: "float32" or "bfloat16".
    """

    def __init__(
        self, model: CaptioningModel, tokenizer: CaptionTokenizer, precision: Precision = "auto"
    ) -> None:
        if precision not in get_args(Precision):
            raise DDCapError(f"precision={precision!r}: use one of {', '.join(get_args(Precision))}")
        if tokenizer.vocabulary_size != model.config.vocabulary_size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocabulary_size} entries, the model "
                f"{model.config.vocabulary_size}; they are not from the same training"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        if precision == "auto":
            precision = "bfloat16" if computes_bfloat16(str(model.device)) else "float32"
        self.precision = precision

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEFAULT_MODEL,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
    ) -> Captioner:
        """Load a model.

        Args:
            model: "default" (shipped inside the package), a folder, or a Hub id.
            device: where to run.
            precision: "float32", "bfloat16" or "auto", see the class.

        Raises:
            CheckpointError: if there is no such model, or it is damaged.
            DDCapError: if there is no such device or precision.
        """
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch raises either, by kind of device
            reason = str(error).splitlines()[0]
            raise DDCapError(f"device {str(device)!r}: not to be had here ({reason}); use cpu") from None
        folder = find_model(model)
        loaded = load_model(folder)
        return cls(loaded.to(device), CaptionTokenizer.load(folder), precision)

    @property
    def decoding(self) -> DecodingSettings:
        """The model's default decoding settings."""
        return self.model.config.decoding

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        seed: int = 0,
        batch_size: int = 16,
        **settings: Any,
    ) -> list[Caption]:
        """One caption per image.

        Args:
            images: paths or PIL images; one or a list.
            seed: of the decoders that draw; the same seed and batch give the same captions.
            batch_size: images computed at once.
            settings: decoding settings to change, see `DecodingSettings`: method, steps, guidance, length,
                temperature, ...

        Raises:
            ImageError: for the first image that cannot be read; `caption_each` goes on instead.
            RecipeError: if a decoding setting is unknown or wrong.
        """
        many: Sequence[ImageSource] = [images] if isinstance(images, ImageSource) else images
        captions = []
        for result in self.caption_each(many, seed=seed, batch_size=batch_size, **settings):
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
            settings: decoding settings to change.
        """
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
            yield from self._caption_batch(images[start : start + batch_size], num, decoding, generator)

    def infill(self, image: ImageSource, template: str, *, seed: int = 0, **settings: Any) -> Caption:
        """Fill the blanks of a caption.

        Args:
            image: path or PIL image.
            template: given words with blanks: `___` of any width, `[3]` of three tokens.
            seed: of the decoders that draw.
            settings: decoding settings to change.

        Raises:
            ImageError: if the image cannot be read.
            DDCapError: if the template has no blank or is too long.
        """
        decoding = self.settings(**settings)
        parsed = parse_template(template, self.tokenizer)
        features = self.features([image])
        generator = torch.Generator(self.model.device).manual_seed(seed)
        with self.computing():
            filled = infill(self.model, features, parsed, decoding, self.tokenizer.end_id, generator)
        return build_captions(filled.result, [filled.row], self.tokenizer)[0]

    def settings(self, **changes: Any) -> DecodingSettings:
        """The model's decoding settings with `changes`; those that are None are left alone.

        Raises:
            RecipeError: if one is unknown or wrong.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        merged: DecodingSettings = parse_settings(
            DecodingSettings, {**dump_settings(self.decoding), **given}, "decoding settings"
        )
        try:
            merged.check_model(self.model.config.model)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        return merged

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32, **settings: Any) -> None:
        """Write model and tokenizer into `folder`, with decoding settings to become the model's own."""
        config = replace(self.model.config, decoding=self.settings(**settings))
        self.model.save_pretrained(folder, dtype, config)
        self.tokenizer.save(folder)

    def push_to_hub(self, target: str | Path, *, private: bool | None = None, **card: Any) -> str:
        """Write model, tokenizer and a generated model card to the Hub or into a folder; where they are now.

        Args:
            target: a Hub id ("owner/name"), or a folder: a `Path`, or a path that exists or begins with ".",
                "/", "~" or a drive ("C:").
            private: of a new Hub repository.
            card: `evaluation`, `licence`, `data`, see `publishing.write_card`.

        Raises:
            CheckpointError: if the Hub cannot be reached or refuses.
        """
        if is_folder_name(target):
            return str(self._save_with_card(Path(target).expanduser(), None, card))
        with tempfile.TemporaryDirectory() as temporary:
            folder = self._save_with_card(Path(temporary), str(target), card)
            return upload(folder, str(target), private=private)

    def _save_with_card(self, folder: Path, name: str | None, card: dict[str, Any]) -> Path:
        self.save(folder, torch.float16)
        parameters = sum(value.numel() for value in self.model.stored_state().values())
        write_card(folder, self.model.config, parameters=parameters, name=name, **card)
        return folder

    @torch.inference_mode()
    def features(self, images: Sequence[ImageSource]) -> ImageFeatures:
        """Memory (I, P, C) and summary (I, S) of images, on the model's device.

        Raises:
            ImageError: for the first image that cannot be read.
        """
        return self._encode([self.pixels(image) for image in images])

    def pixels(self, image: ImageSource) -> Tensor:
        """Pixels (3, H, W) of one image, as the encoder wants them."""
        return self.model.encoder.preprocessing(load_image(image))

    def _encode(self, pixels: list[Tensor]) -> ImageFeatures:
        with self.computing():
            features: ImageFeatures = self.model.encoder(torch.stack(pixels).to(self.model.device))
        return ImageFeatures(features.memory.float(), features.summary.float())

    def computing(self) -> torch.autocast:
        """The context of a forward pass: autocast, where the precision is bfloat16."""
        return computing(self.model.device, bfloat16=self.precision == "bfloat16")

    def _caption_batch(
        self, images: Sequence[ImageSource], num: int, decoding: DecodingSettings, generator: torch.Generator
    ) -> Iterator[ImageResult]:
        pixels: list[Tensor] = []
        errors: list[str | None] = []
        for image in images:
            try:
                pixels.append(self.pixels(image))
                errors.append(None)
            except ImageError as error:
                errors.append(str(error))
        captions = iter(self._decode(pixels, num, decoding, generator) if pixels else [])
        for image, reason in zip(images, errors, strict=True):
            yield ImageResult(image, () if reason else next(captions), reason)

    @torch.inference_mode()
    def _decode(
        self, pixels: list[Tensor], num: int, decoding: DecodingSettings, generator: torch.Generator
    ) -> list[tuple[Caption, ...]]:
        features = self._encode(pixels)
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
