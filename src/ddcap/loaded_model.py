"""A trained model with its tokenizer, ready to see images: what a captioner is before it captions."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from ddcap.caption import Concept
from ddcap.data.concepts import NO_CONCEPT
from ddcap.data.images import ImageSource, load_image
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import CheckpointError, DDCapError, RecipeError
from ddcap.hub import is_folder_name
from ddcap.machine import computes_bfloat16, computing
from ddcap.model.image_encoder import ImageFeatures
from ddcap.model.kinds import CaptioningModel, load_model
from ddcap.model_folder import DEFAULT_MODEL, find_model
from ddcap.publishing import upload, write_card
from ddcap.recipe import DecodingSettings
from ddcap.settings import dump_settings, parse_settings

_Loaded = TypeVar("_Loaded", bound="LoadedModel")

Precision = Literal["auto", "float32", "bfloat16"]


class LoadedModel:
    """A model, its tokenizer, and what it computes in.

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
        cls: type[_Loaded],
        model: str | Path = DEFAULT_MODEL,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
    ) -> _Loaded:
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

    def settings(self, **changes: Any) -> DecodingSettings:
        """The model's decoding settings with `changes`; those that are None are left alone.

        A length that is asked for is exact, also where the model's own settings choose among candidates of
        several lengths. Asked for together with `candidates`, it is the middle of their lengths.

        Raises:
            RecipeError: if one is unknown or wrong.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        own = dump_settings(self.decoding)
        if given.get("length", "predicted") != "predicted" and given.get("candidates", 1) == 1:
            own.update(exact_length=True, candidates=1)
        elif "length" in given or given.get("candidates", 1) != 1:
            own.update(exact_length=False)
        merged: DecodingSettings = parse_settings(DecodingSettings, {**own, **given}, "decoding settings")
        try:
            merged.check_model(self.model.config.model, sees_concepts=self.model.config.concepts > 0)
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

    def concepts(self, image: ImageSource) -> list[Concept]:
        """What the model sees in an image, surest first; `concepts=` of a call changes it.

        Raises:
            ImageError: if the image cannot be read.
            DDCapError: if the model sees no concepts.
        """
        vocabulary = self.model.vocabulary
        if vocabulary is None:
            raise DDCapError("this model sees no concepts; the default does")
        seen = self.features([image]).concepts
        assert seen is not None
        pairs = zip(seen.ids[0].tolist(), seen.confidences[0].tolist(), strict=True)
        return [Concept(vocabulary.words[number], share) for number, share in pairs if number != NO_CONCEPT]

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
        assert features.memory is not None and features.summary is not None
        return ImageFeatures(features.memory.float(), features.summary.float(), features.concepts)

    def computing(self) -> torch.autocast:
        """The context of a forward pass: autocast, where the precision is bfloat16."""
        return computing(self.model.device, bfloat16=self.precision == "bfloat16")
