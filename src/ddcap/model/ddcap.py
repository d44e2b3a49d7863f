"""The whole model: image encoder, memory projection, length head, denoiser.

Shapes: B captions, I images (B a multiple of I), L caption positions, P image positions, C encoder width, D
width, S summary width, V words.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ddcap.diffusion import Schedule, linear_schedule
from ddcap.model.blocks import MemoryKeysValues
from ddcap.model.concepts import ConceptEmbedding, memory_with_concepts
from ddcap.model.denoiser import Denoiser
from ddcap.model.encoders import ImageEncoder, ImageFeatures
from ddcap.model.layers import LengthHead, Packing, TanhMLP, may_attend
from ddcap.model.storage import ModelConfig, StoredModel


class DDCapModel(StoredModel):
    """Image and noised caption to a prediction of the clean caption (section 3 of the paper).

    Args:
        config: the model's settings.
        encoder: an image encoder; None builds the one `config` names, with its published weights.
    """

    kind: ClassVar[str] = "diffusion"

    def __init__(self, config: ModelConfig, encoder: ImageEncoder | None = None) -> None:
        super().__init__(config, encoder)
        settings = config.model
        self.memory_projection = TanhMLP(
            self.encoder.memory_width, settings.projection_hidden, settings.width
        )
        # with concepts one position is enough: it is seen beside a picture's positions, not instead of them
        free_positions = 1 if config.concepts else self.encoder.memory_positions
        self.image_free_memory = nn.Parameter(torch.randn(free_positions, settings.width).mul_(0.02))
        self.concept_embedding = (
            ConceptEmbedding(config.concepts, settings.width) if config.concepts else None
        )
        self.denoiser = Denoiser(settings, config.vocabulary_size, config.diffusion.steps)
        self.length_head = (
            LengthHead(self.encoder.summary_width, settings.length_hidden, settings.max_length)
            if settings.length_prediction
            else None
        )

    @property
    def schedule(self) -> Schedule:
        """The forward process the model was made for."""
        return linear_schedule(self.config.diffusion, self.config.vocabulary_size)

    def forward(
        self, noised_tokens: Tensor, timestep: Tensor, lengths: Tensor, keys_values: MemoryKeysValues
    ) -> Tensor:
        """Hidden states (B, L, D) of noised captions, which `denoiser.logits` turns into p(x_0 | x_t, y).

        Args:
            noised_tokens: (B, L) x_t.
            timestep: (B,) t.
            lengths: (B,) tokens of each caption, end token included; what lies behind is not read.
            keys_values: of I images, see `keys_values`; the B captions are grouped by image.
        """
        positions = torch.arange(noised_tokens.shape[1], device=noised_tokens.device)
        is_padding = positions >= lengths.unsqueeze(1)  # (B, L)
        allowed = may_attend(
            is_mask=noised_tokens == self.mask_id,
            is_padding=is_padding,
            concentrated=self.config.model.concentrated_attention,
        )
        following = None
        if self.config.model.length_difference:
            following = (lengths.unsqueeze(1) - 1 - positions).clamp(min=0)  # (B, L)
        packing = (
            Packing(is_padding) if self.training else None
        )  # captions decoded together are about as long
        states: Tensor = self.denoiser(noised_tokens, timestep, keys_values, allowed, following, packing)
        return states

    def keys_values(
        self, features: ImageFeatures | None, use_image: Tensor | None = None
    ) -> MemoryKeysValues:
        """What the denoiser sees of I pictures; of captions without pictures (None), the image-free memory.

        `use_image` (I,) False replaces an image's memory by the learned one (special design 4).
        """
        if features is None:
            return self.image_free_keys_values()
        return self.project_memory(features, use_image)

    def project_memory(self, features: ImageFeatures, use_image: Tensor | None = None) -> MemoryKeysValues:
        """Cross-attention keys and values of I images; see `keys_values`."""
        if self.concept_embedding is not None:
            memory, visible = memory_with_concepts(
                self, features, self.denoiser.token_embedding.weight, use_image
            )
            return self.denoiser.project_memory(memory, visible)
        memory = self.memory_projection(features.memory)  # (I, P, D)
        if use_image is not None:
            memory = torch.where(use_image.view(-1, 1, 1), memory, self.image_free_memory.to(memory.dtype))
        return self.denoiser.project_memory(memory)

    def image_free_keys_values(self) -> MemoryKeysValues:
        """Cross-attention keys and values of the learned image-free memory, as one image."""
        memory = self.image_free_memory.unsqueeze(0)
        visible = memory.new_ones(memory.shape[:2], dtype=torch.bool) if self.config.concepts else None
        return self.denoiser.project_memory(memory, visible)

    def length_logits(self, features: ImageFeatures) -> Tensor | None:
        """(I, max_length) length logits, or None without a length head.

        The summary is detached: the length loss would harm a trainable encoder (section 3.2).
        """
        if self.length_head is None or features.summary is None:
            return None
        logits: Tensor = self.length_head(features.summary.detach())
        return logits
