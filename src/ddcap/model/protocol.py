"""The interface between decoding and a model, which PyTorch models and ONNX graphs share.

Shapes: I images, B captions (B a multiple of I, grouped by image), L caption positions, n of them asked for,
V words.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ddcap.arrays import Array
from ddcap.data.concepts import ConceptSpelling, ConceptVocabulary
from ddcap.data.images import Preprocessing
from ddcap.model.config import ModelConfig
from ddcap.model.features import ImageFeatures


class DenoisingSteps(Protocol):
    """A denoiser at work on captions of I images; each runtime has its own."""

    @property
    def vocabulary_size(self) -> int:
        """V."""

    @property
    def self_conditions(self) -> bool:
        """True if it takes `guess`: the model has `model.self_conditioning`."""

    def logits(
        self, tokens: Array, timestep: Array, lengths: Array, positions: Array, guess: Array | None = None
    ) -> tuple[Array, Array | None]:
        """Logits (B, n, V) at `positions`, with the image and, if it was asked for, without.

        Args:
            tokens: (B, L) x_t.
            timestep: (B,) t.
            lengths: (B,).
            positions: (B, n).
            guess: (B, L) words that were predicted at the step before, -1 for none.
        """

    def likeliest(
        self,
        tokens: Array,
        timestep: Array,
        lengths: Array,
        positions: Array,
        added: Array | None = None,
        scale: float = 1.0,
        guess: Array | None = None,
    ) -> tuple[Array, Array]:
        """The likeliest token (B, n) and its log-probability, guided and with (B, V) added to the logits."""


class StepsMaker(Protocol):
    """Makes the denoising steps of a model in another way than the model itself."""

    def steps(self, features: ImageFeatures, *, with_image_free: bool) -> DenoisingSteps:
        """The denoiser at work on captions of these images."""


class CaptionJudge(Protocol):
    """A model's judge of captions of I images; each runtime has its own."""

    def log_probabilities(self, tokens: Array) -> Array:
        """(B, L) log p(token | tokens before it, image) of captions `tokens` (B, L), grouped by image."""


class CaptioningModel(Protocol):
    """A model that captions, of any kind and on any runtime."""

    @property
    def config(self) -> ModelConfig:
        """Its settings."""

    @property
    def device(self) -> Any:
        """The device that it computes on."""

    @property
    def mask_id(self) -> int:
        """V, the id of the MASK state."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The way from an image to pixels."""

    @property
    def vocabulary(self) -> ConceptVocabulary | None:
        """The concepts that it sees; None if it sees none."""

    @property
    def spelling(self) -> ConceptSpelling | None:
        """The spelling of its concepts' words; None if it sees none."""

    def as_array(self, values: np.ndarray) -> Array:
        """Numbers where the model computes."""

    def encode(self, pixels: np.ndarray) -> ImageFeatures:
        """Features of pixels (I, 3, H, W)."""

    def length_logits(self, features: ImageFeatures) -> Array | None:
        """(I, max_length) length logits, or None without a length head."""

    def caption_judge(self, features: ImageFeatures) -> CaptionJudge | None:
        """A judge of captions of these images, or None without one (`model.judge`)."""


class DenoisingModel(CaptioningModel, Protocol):
    """A diffusion model."""

    def denoising_steps(self, features: ImageFeatures, *, with_image_free: bool) -> DenoisingSteps:
        """The denoiser at work on captions of these images."""
