"""The autoregressive twin: the paper's controlled comparison (+5.0 CIDEr for the diffusion model on COCO).

Same encoder, memory projection, width, depth, heads, cross-attention and tied head as the denoiser; a causal
mask instead of the concentrated one, plain layer norms instead of those that read the timestep.

Shapes: B captions, I images (B a multiple of I: captions of one image lie side by side), L caption positions,
P image positions, D width, H heads, V words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcap.model.concepts import ConceptEmbedding, memory_with_concepts
from ddcap.model.denoiser import CrossAttention, MemoryKeysValues, gpt2_initialise
from ddcap.model.encoders import ImageEncoder, ImageFeatures
from ddcap.model.layers import RecomputingBlocks, TanhMLP, attend, join_heads, split_heads
from ddcap.model.storage import ModelConfig, StoredModel
from ddcap.settings import ModelSettings


@dataclass(frozen=True)
class PastKeysValues:
    """Self-attention keys and values of the words so far, so that each word is computed once.

    Attributes:
        layers: per layer the keys and the values, each (B, H, words so far, D/H).
    """

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def words(self) -> int:
        """Input positions read so far, the start included."""
        return self.layers[0][0].shape[2]

    def select(self, rows: Tensor) -> PastKeysValues:
        """The past of captions `rows` (B',): a beam goes on from another one's words."""
        return PastKeysValues(tuple((key[rows], value[rows]) for key, value in self.layers))


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention to the words so far."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.heads = settings.heads
        self.dropout = settings.dropout
        self.query_key_value = nn.Linear(settings.width, 3 * settings.width)
        self.output = nn.Linear(settings.width, settings.width)

    def forward(
        self, hidden: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`hidden` (B, L, D), all words at once without `past`, or the one (L = 1) that comes after it."""
        query, key, value = (
            split_heads(part, self.heads) for part in self.query_key_value(hidden).chunk(3, dim=2)
        )  # (B, H, L, D/H)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        words = hidden.shape[1]
        causal = torch.ones(words, words, dtype=torch.bool, device=hidden.device).tril()
        dropout = self.dropout if self.training else 0.0
        attended = attend(query, key, value, causal if past is None else None, dropout=dropout)
        return self.output(join_heads(attended)), (key, value)


class CausalBlock(nn.Module):
    """Self-attention, cross-attention and MLP, each behind its layer norm."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width = settings.width
        self.norm_self = nn.LayerNorm(width)
        self.self_attention = CausalSelfAttention(settings)
        self.norm_cross = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(settings)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(settings.dropout)

    def forward(
        self,
        hidden: Tensor,
        keys_values: tuple[Tensor, Tensor] | None,
        past: tuple[Tensor, Tensor] | None,
        may_see: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One block; shapes as in `CausalDecoder.forward`; without a picture no cross-attention."""
        attended, past = self.self_attention(self.norm_self(hidden), past)
        hidden = hidden + self.dropout(attended)
        if keys_values is not None:
            attended = self.cross_attention(self.norm_cross(hidden), *keys_values, may_see=may_see)
            hidden = hidden + self.dropout(attended)
        return hidden + self.dropout(self.mlp(self.norm_mlp(hidden))), past


class CausalDecoder(RecomputingBlocks):
    """log p(word | words before it, memory): the twin of `Denoiser`.

    Args:
        settings: the recipe's model section.
        vocabulary_size: V.
    """

    def __init__(self, settings: ModelSettings, vocabulary_size: int) -> None:
        super().__init__()
        width = settings.width
        self.token_embedding = nn.Embedding(vocabulary_size, width)
        self.start_embedding = nn.Parameter(torch.empty(width))
        self.position_embedding = nn.Embedding(settings.positions or settings.max_length, width)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(CausalBlock(settings) for _ in range(settings.layers))
        self.final_norm = nn.LayerNorm(width)
        gpt2_initialise(self, list(self._each_block()))
        nn.init.normal_(self.start_embedding, std=0.02)

    def project_memory(self, memory: Tensor, visible: Tensor | None = None) -> MemoryKeysValues:
        """Keys and values of every layer for `memory` (I, P, D)."""
        layers = tuple(block.cross_attention.keys_values(memory) for block in self._each_block())
        return MemoryKeysValues(layers, visible)

    def freeze_cross_attention(self) -> None:
        """Take the gradient from what captions without pictures skip."""
        for block in self._each_block():
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
        hidden = self.dropout(embedded)
        layers = []
        may_see = keys_values.may_see if keys_values is not None else None
        for number, block in enumerate(self._each_block()):
            memory = keys_values.layers[number] if keys_values is not None else None
            layer_past = past.layers[number] if past else None
            hidden, layer_past = self.run_block(block, hidden, memory, layer_past, may_see)
            layers.append(layer_past)
        return self.final_norm(hidden), PastKeysValues(tuple(layers))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., V): the head is the token embedding."""
        return F.linear(hidden, self.token_embedding.weight)

    def _each_block(self) -> Iterator[CausalBlock]:
        return cast("Iterator[CausalBlock]", iter(self.blocks))


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
            self.image_free_memory = nn.Parameter(torch.randn(1, settings.width) * 0.02)

    def forward(
        self, tokens: Tensor, features: ImageFeatures | None, *, positions: Tensor | None = None
    ) -> Tensor:
        """Logits of every token given those before it.

        Args:
            tokens: (B, L) whole captions; the last one is read by nobody.
            features: of I images; the B captions are grouped by image. None: they have no picture.
            positions: (N,) flat indices into B x L where logits are wanted; None for all.

        Returns:
            (N, V), or (B, L, V).
        """
        hidden = self.hidden(tokens, features)
        if positions is not None:
            hidden = hidden.flatten(0, 1)[positions]  # (N, D)
        return self.decoder.logits(hidden)

    def hidden(
        self, tokens: Tensor, features: ImageFeatures | None, use_image: Tensor | None = None
    ) -> Tensor:
        """States (B, L, D) that `decoder.logits` turns into those of `forward`."""
        keys_values = self.project_memory(features, use_image) if features is not None else None
        hidden: Tensor
        hidden, _ = self.decoder(self.decoder.embed(tokens[:, :-1]), keys_values)
        return hidden

    def project_memory(self, features: ImageFeatures, use_image: Tensor | None = None) -> MemoryKeysValues:
        """Cross-attention keys and values of I images, computed once per image.

        With concepts, `use_image` (I,) False leaves an image's positions out.
        """
        if self.concept_embedding is not None:
            memory, visible = memory_with_concepts(
                self, features, self.decoder.token_embedding.weight, use_image
            )
            return self.decoder.project_memory(memory, visible)
        return self.decoder.project_memory(self.memory_projection(features.memory))

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
