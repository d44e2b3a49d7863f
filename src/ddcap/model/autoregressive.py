"""The autoregressive model: the paper's controlled comparison (+5.0 CIDEr for the diffusion model on COCO).

The denoiser's stack of blocks with a causal mask instead of the concentrated one, plain layer norms instead
of those that read the timestep, a start vector instead of a MASK one; the same encoder, the same memory.

Shapes: B captions, I images (B a multiple of I: captions of one image lie side by side), L caption positions,
D width, H heads, V words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ddcap.model.attention_mask import causal_mask
from ddcap.model.blocks import BlockStack, KeysValues, MemoryKeysValues
from ddcap.model.checkpoint_files import StoredModel
from ddcap.model.concepts import ConceptEmbedding, memory_with_concepts
from ddcap.model.config import ModelConfig
from ddcap.model.encoders import ImageEncoder
from ddcap.model.features import ImageFeatures
from ddcap.model.layers import TanhMLP
from ddcap.settings import ModelSettings


@dataclass(frozen=True)
class PastKeysValues:
    """Self-attention keys and values of the words so far, so that each word is computed once.

    Attributes:
        layers: per layer the keys and the values, each (B, H, words so far, D/H).
    """

    layers: tuple[KeysValues, ...]

    @property
    def words(self) -> int:
        """Input positions read so far, the start included."""
        return self.layers[0][0].shape[2]

    def select(self, rows: Tensor) -> PastKeysValues:
        """The past of captions `rows` (B',): a beam goes on from another one's words."""
        return PastKeysValues(tuple((key[rows], value[rows]) for key, value in self.layers))


class CausalDecoder(BlockStack):
    """log p(word | words before it, memory): the counterpart of `Denoiser`.

    Args:
        settings: the recipe's model section.
        vocabulary_size: V.
    """

    def __init__(self, settings: ModelSettings, vocabulary_size: int) -> None:
        super().__init__(settings, vocabulary_size)
        self.start_embedding = nn.Parameter(torch.empty(settings.width))
        self._add_blocks(settings, adaptive=False)
        nn.init.normal_(self.start_embedding, std=0.02)

    def freeze_cross_attention(self) -> None:
        """Take the gradient from what captions without images skip."""
        for block in self.each_block():
            block.norm_cross.requires_grad_(False)
            block.cross_attention.requires_grad_(False)

    def embed(self, tokens: Tensor) -> Tensor:
        """A start vector, then the words `tokens` (B, L): (B, L + 1, D) with positions."""
        start = self.start_embedding.expand(len(tokens), 1, -1)
        words = torch.cat([start, self.token_embedding(tokens)], dim=1)
        return words + self.position_embedding.weight[: words.shape[1]]

    def embed_one(self, tokens: Tensor, place: int) -> Tensor:
        """The words `tokens` (B,) read at input position `place`: (B, 1, D)."""
        return (self.token_embedding(tokens) + self.position_embedding.weight[place]).unsqueeze(1)

    def forward(
        self, embedded: Tensor, keys_values: MemoryKeysValues | None, past: PastKeysValues | None = None
    ) -> tuple[Tensor, PastKeysValues]:
        """Hidden states (B, L, D) of embedded words, and the past with them."""
        hidden, layers = self.dropout(embedded), []
        causal = None  # one word after its past may attend to all of it
        if past is None:
            causal = causal_mask(embedded.shape[1], embedded.device)
        memory_mask = keys_values.memory_mask if keys_values is not None else None
        for number, block in enumerate(self.each_block()):
            memory = keys_values.layers[number] if keys_values is not None else None
            layer_past = past.layers[number] if past is not None else None
            hidden, layer_past = self.run_block(block, hidden, memory, causal, memory_mask, past=layer_past)
            layers.append(layer_past)
        return self.final_norm(hidden), PastKeysValues(tuple(layers))


class AutoregressiveModel(StoredModel):
    """Image and the words so far to the next word.

    Args:
        config: the model's settings; `diffusion` is not read.
        encoder: an image encoder; None builds the one `config` names, with its published weights.
    """

    kind: ClassVar[str] = "autoregressive"

    def __init__(self, config: ModelConfig, encoder: ImageEncoder | None = None) -> None:
        super().__init__(config, encoder)
        settings = config.model
        self.memory_projection = TanhMLP(
            self.encoder.memory_width, settings.projection_hidden, settings.width
        )
        self.decoder = CausalDecoder(settings, config.vocabulary_size)
        self.concept_embedding = None
        if config.concepts:
            self.concept_embedding = ConceptEmbedding(config.concepts, settings.width)
            self.image_free_memory = nn.Parameter(torch.randn(1, settings.width).mul_(0.02))

    def forward(
        self, tokens: Tensor, features: ImageFeatures | None, use_image: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, L, D), which `decoder.logits` turns into every token's given those before it.

        Args:
            tokens: (B, L) whole captions; the last one is read by nobody.
            features: of I images; the B captions are grouped by image. None: they have no image.
            use_image: see `project_memory`.
        """
        keys_values = self.project_memory(features, use_image) if features is not None else None
        hidden: Tensor
        hidden, _ = self.decoder(self.decoder.embed(tokens[:, :-1]), keys_values)
        return hidden

    def project_memory(self, features: ImageFeatures, use_image: Tensor | None = None) -> MemoryKeysValues:
        """Cross-attention keys and values of I images, computed once per image.

        With concepts, `use_image` (I,) False leaves an image's positions out.
        """
        if self.concept_embedding is not None:
            memory, mask = memory_with_concepts(
                self, features, self.decoder.token_embedding.weight, use_image
            )
            return self.decoder.project_memory(memory, mask)
        return self.decoder.project_memory(self.memory_projection(features.memory))

    def length_logits(self, features: ImageFeatures) -> None:
        """None: an autoregressive model ends its captions by itself."""

    def caption_judge(self, features: ImageFeatures) -> None:
        """None: its own likelihood is the judgement."""

    def first_logits(self, captions: int, keys_values: MemoryKeysValues) -> tuple[Tensor, PastKeysValues]:
        """Logits (B, V) of the first word of B = `captions` captions, and the past for `next_logits`."""
        nothing = torch.empty(captions, 0, dtype=torch.long, device=self.device)
        hidden, past = self.decoder(self.decoder.embed(nothing), keys_values)
        return self.decoder.logits(hidden[:, -1]), past

    def next_logits(
        self, tokens: Tensor, keys_values: MemoryKeysValues, past: PastKeysValues
    ) -> tuple[Tensor, PastKeysValues]:
        """Logits (B, V) of the word after `tokens` (B,), and the past with it."""
        hidden, past = self.decoder(self.decoder.embed_one(tokens, past.words), keys_values, past)
        return self.decoder.logits(hidden[:, -1]), past
