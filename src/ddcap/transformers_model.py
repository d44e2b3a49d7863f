"""The model and its processor as classes of transformers, for `AutoModel` and `AutoProcessor`.

A folder that `Captioner.save_pretrained` wrote loads with `trust_remote_code=True`:

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    tokens = model.generate(**processor(image, return_tensors="pt"), num_inference_steps=10)
    processor.batch_decode(tokens)

Needs transformers (the extra `clip`). Shapes: I images, L caption positions, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, PretrainedConfig, PreTrainedModel

from ddcap.data.images import Preprocessing, load_image, preprocessing_of
from ddcap.data.sources import ImageSource
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.generate import generate
from ddcap.decoding.overrides import overridden
from ddcap.errors import DDCapError
from ddcap.model.autoregressive import AutoregressiveModel
from ddcap.model.config import read_config
from ddcap.model.loading import TorchModel, load_model
from ddcap.publishing import find_model

_HUB = ("revision", "token", "cache_dir", "local_files_only")


def _folder(model: str | Path, options: dict[str, Any]) -> Path:
    """Find the folder, taking the Hub's options out of `options`."""
    hub = {name: options.pop(name) for name in _HUB if options.get(name) is not None}
    if hub.get("revision") == "main":
        del hub["revision"]
    return find_model(model, **hub)


class DDCapConfig(PretrainedConfig):
    """`config.json` as transformers keeps it; the sections stay plain dictionaries."""

    model_type = "ddcap"


class DDCapForImageCaptioning(PreTrainedModel):
    """A captioning model as transformers knows it.

    Args:
        config: of the folder.
        model: loaded, in evaluation mode.
        tokenizer: of the model.
    """

    config_class = DDCapConfig
    main_input_name = "pixel_values"

    def __init__(self, config: DDCapConfig, model: TorchModel, tokenizer: CaptionTokenizer) -> None:
        super().__init__(config)
        self.captioner, self._end_id = model, tokenizer.end_id

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *_: Any, **options: Any
    ) -> DDCapForImageCaptioning:
        """Load a model of ddcap.

        Args:
            pretrained_model_name_or_path: "default", a folder, or a Hub id.
            options: `revision`, `token`, `cache_dir`, `local_files_only`, and `dtype` of the weights; what
                else transformers gives has no effect.

        Raises:
            CheckpointError: if there is no such model, or it is damaged.
        """
        folder = _folder(pretrained_model_name_or_path, options)
        config = options.get("config")
        if not isinstance(config, DDCapConfig):
            config = DDCapConfig.from_pretrained(folder)
        model = cls(config, load_model(folder).eval(), CaptionTokenizer.load(folder)).eval()
        dtype = options.get("dtype", options.get("torch_dtype"))
        return model.to(dtype) if isinstance(dtype, torch.dtype) else model

    def forward(self, pixel_values: Tensor, input_ids: Tensor, timestep: Tensor) -> Tensor:
        """Logits (I, L, V) of the words x_0 at every position, given noised captions x_t.

        Args:
            pixel_values: (I, 3, H, W).
            input_ids: (I, L) noised captions; `mask_token_id` is MASK. The end token is the last.
            timestep: (I,) t, from 1 on.

        Raises:
            DDCapError: if the model is autoregressive.
        """
        model = self.captioner
        if isinstance(model, AutoregressiveModel):
            raise DDCapError("an autoregressive model has no timestep; call generate")
        lengths = torch.full((len(input_ids),), input_ids.shape[1], device=input_ids.device)
        keys_values = model.keys_values(model.encoder(pixel_values))
        states = model(input_ids, timestep, lengths, keys_values)
        logits: Tensor = model.denoiser.logits(states)
        return logits

    @property
    def mask_token_id(self) -> int:
        """MASK, the token of a position that has no word yet."""
        return self.captioner.mask_id

    @torch.no_grad()
    def generate(
        self, pixel_values: Tensor, *, seed: int = 0, num_return_sequences: int = 1, **settings: Any
    ) -> Tensor:
        """Caption images. Returns tokens (I * num_return_sequences, L), grouped by image.

        What lies past a caption's end is the end token, which `DDCapProcessor.batch_decode` drops.

        Args:
            pixel_values: (I, 3, H, W) from the processor.
            seed: for decoders that draw.
            num_return_sequences: captions per image, each of another length.
            settings: decoding settings by our names or `generation_config.ALIASES`, or `preset`.

        Raises:
            RecipeError: if a setting is unknown or wrong.
        """
        asked = overridden(self.captioner.config, settings)
        features = self.captioner.encode(pixel_values.float().cpu().numpy())
        result = generate(
            self.captioner,
            features,
            asked,
            self._end_id,
            generator=np.random.default_rng(seed),
            captions_per_image=num_return_sequences,
        )
        tokens: Tensor = result.until(self._end_id)
        return tokens


class DDCapProcessor:
    """Images to pixels, and tokens to captions.

    Args:
        preprocessing: of the model's encoder.
        tokenizer: of the model.
    """

    def __init__(self, preprocessing: Preprocessing, tokenizer: CaptionTokenizer) -> None:
        self.preprocessing, self.tokenizer = preprocessing, tokenizer

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *_: Any, **options: Any
    ) -> DDCapProcessor:
        """Load the processor of a model; see `DDCapForImageCaptioning.from_pretrained`.

        Raises:
            CheckpointError: if there is no such model, or it is damaged.
        """
        folder = _folder(pretrained_model_name_or_path, options)
        return cls(preprocessing_of(read_config(folder).encoder), CaptionTokenizer.load(folder))

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Do nothing: transformers asks for it where it loads a class from a folder."""

    def __call__(
        self, images: ImageSource | Sequence[ImageSource], return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """Pixels of images: `pixel_values` (I, 3, H, W).

        Args:
            images: one, or several; see `Captioner.__call__`.
            return_tensors: "pt" or "np".

        Raises:
            ImageError: for the first image that cannot be read.
        """
        several: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
        pixels = np.stack([self.preprocessing(load_image(image, unnamed="image")) for image in several])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def batch_decode(self, tokens: Tensor, **_: Any) -> list[str]:
        """Captions of tokens (C, L)."""
        return [self.decode(row) for row in tokens]

    def decode(self, tokens: Tensor, **_: Any) -> str:
        """The caption of tokens (L,), up to the first end token."""
        return self.tokenizer.decode(tokens.tolist())
