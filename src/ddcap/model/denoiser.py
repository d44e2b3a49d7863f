"""Noised tokens, timestep and image memory to a prediction of the clean caption.

The release's architecture: a GPT-2 block stack without causal mask, cross-attention to the image in every
block, layer norms whose scale and shift come from the timestep, output head tied to the token embedding.

Shapes: B captions, I images (B a multiple of I: captions of one image lie side by side and share its keys and
values), L caption positions, P image positions, D width, H heads, V words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcap.model.layers import (
    AdaptiveLayerNorm,
    Packing,
    RecomputingBlocks,
    TimestepEmbedding,
    attend,
    join_heads,
    split_heads,
)
from ddcap.settings import ModelSettings


@dataclass(frozen=True)
class MemoryKeysValues:
    """The cross-attention's keys and values of some images, computed once per image.

    Attributes:
        layers: per layer the keys and the values, each (I, H, P, D/H).
        visible: (I, P) True where there is something to see; None: everywhere.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    visible: Tensor | None = None

    @property
    def may_see(self) -> Tensor | None:
        """`visible` as an attention mask (I, 1, 1, P)."""
        return None if self.visible is None else self.visible[:, None, None]

    def expand(self, images: int) -> MemoryKeysValues:
        """A single image as `images` images, without copying."""
        shape = (images, -1, -1, -1)
        layers = tuple((key.expand(shape), value.expand(shape)) for key, value in self.layers)
        return MemoryKeysValues(layers, None if self.visible is None else self.visible.expand(images, -1))

    def followed_by(self, other: MemoryKeysValues) -> MemoryKeysValues:
        """These images, then those of `other`, which may have fewer positions if it says what is visible."""
        pairs = zip(self.layers, other.layers, strict=True)
        missing = self.layers[0][0].shape[2] - other.layers[0][0].shape[2]
        layers = tuple(
            (
                torch.cat([k, F.pad(other_k, (0, 0, 0, missing))]),
                torch.cat([v, F.pad(other_v, (0, 0, 0, missing))]),
            )
            for (k, v), (other_k, other_v) in pairs
        )
        if self.visible is None or other.visible is None:
            return MemoryKeysValues(layers)
        return MemoryKeysValues(layers, torch.cat([self.visible, F.pad(other.visible, (0, missing))]))


class SelfAttention(nn.Module):
    """Multi-head self-attention with a boolean mask."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.heads = settings.heads
        self.dropout = settings.dropout
        self.query_key_value = nn.Linear(settings.width, 3 * settings.width)
        self.output = nn.Linear(settings.width, settings.width)

    def forward(self, hidden: Tensor, may_attend: Tensor, packing: Packing | None = None) -> Tensor:
        """`hidden` (B, L, D), or (N, D) packed, `may_attend` (B, 1, L, L)."""
        both = self.query_key_value(hidden)
        if packing is not None:
            both = packing.unpack(both)
        query, key, value = (split_heads(part, self.heads) for part in both.chunk(3, dim=2))  # (B, H, L, D/H)
        dropout = self.dropout if self.training else 0.0
        attended = attend(query, key, value, may_attend, dropout=dropout)
        joined = join_heads(attended)
        projected: Tensor = self.output(joined if packing is None else packing.pack(joined))
        return projected


class CrossAttention(nn.Module):
    """Multi-head attention from caption positions to image positions."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.heads = settings.heads
        self.dropout = settings.dropout
        self.query = nn.Linear(settings.width, settings.width)
        self.key_value = nn.Linear(settings.width, 2 * settings.width)
        self.output = nn.Linear(settings.width, settings.width)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (I, H, P, D/H) of `memory` (I, P, D)."""
        key, value = (split_heads(part, self.heads) for part in self.key_value(memory).chunk(2, dim=2))
        return key.contiguous(), value.contiguous()  # else the products copy them, and both are kept

    def forward(
        self,
        hidden: Tensor,
        key: Tensor,
        value: Tensor,
        packing: Packing | None = None,
        may_see: Tensor | None = None,
    ) -> Tensor:
        """`hidden` (B, L, D) against (I, H, P, D/H): an image's captions become one long row of queries.

        `hidden` may be (N, D) packed; `may_see` is (I, 1, 1, P).
        """
        query = self.query(hidden)
        if packing is not None:
            query = packing.unpack(query)
        batch, length, width = query.shape
        images = key.shape[0]
        query = split_heads(query.view(images, batch // images * length, width), self.heads)
        attended = attend(query, key, value, may_see, dropout=self.dropout if self.training else 0.0)
        joined = join_heads(attended).view(batch, length, width)
        projected: Tensor = self.output(joined if packing is None else packing.pack(joined))
        return projected


class Block(nn.Module):
    """Self-attention, cross-attention and MLP, each behind its adaptive layer norm."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width = settings.width
        self.norm_self = AdaptiveLayerNorm(width)
        self.self_attention = SelfAttention(settings)
        self.norm_cross = AdaptiveLayerNorm(width)
        self.cross_attention = CrossAttention(settings)
        self.norm_mlp = AdaptiveLayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(settings.dropout)

    def forward(
        self,
        hidden: Tensor,
        time: Tensor,
        keys_values: tuple[Tensor, Tensor],
        may_attend: Tensor,
        packing: Packing | None = None,
        may_see: Tensor | None = None,
    ) -> Tensor:
        """One block; shapes as in `Denoiser.forward`, `hidden` (N, D) with a packing."""
        normed = self.norm_self(hidden, time, packing)
        hidden = hidden + self.dropout(self.self_attention(normed, may_attend, packing))
        normed = self.norm_cross(hidden, time, packing)
        hidden = hidden + self.dropout(self.cross_attention(normed, *keys_values, packing, may_see))
        return hidden + self.dropout(self.mlp(self.norm_mlp(hidden, time, packing)))


class Denoiser(RecomputingBlocks):
    """p_theta(x_0 | x_t, memory) at every caption position.

    Args:
        settings: the recipe's model section.
        vocabulary_size: V; the id V is MASK and has its own input vector.
        steps: T, which scales the timestep embedding.
    """

    def __init__(self, settings: ModelSettings, vocabulary_size: int, steps: int) -> None:
        super().__init__()
        width = settings.width
        self.mask_id = vocabulary_size
        self.token_embedding = nn.Embedding(vocabulary_size, width)
        self.mask_embedding = nn.Parameter(torch.empty(width))
        self.position_embedding = nn.Embedding(settings.positions or settings.max_length, width)
        self.difference_embedding = (
            nn.Embedding(settings.max_length, width) if settings.length_difference else None
        )
        self.timestep_embedding = TimestepEmbedding(width, steps)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.final_norm = nn.LayerNorm(width)
        self._initialise()

    def project_memory(self, memory: Tensor, visible: Tensor | None = None) -> MemoryKeysValues:
        """Keys and values of every layer for `memory` (I, P, D); compute once, use at every step."""
        layers = tuple(block.cross_attention.keys_values(memory) for block in self._each_block())
        return MemoryKeysValues(layers, visible)

    def forward(
        self,
        noised_tokens: Tensor,
        timestep: Tensor,
        keys_values: MemoryKeysValues,
        may_attend: Tensor,
        following: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Hidden states of every caption position; `logits` turns them into a prediction.

        Args:
            noised_tokens: (B, L) x_t.
            timestep: (B,) t.
            keys_values: of I images; the B captions are grouped by image.
            may_attend: (B, L, L) boolean, see `attention_mask`.
            following: (B, L) number of tokens behind each position, for models with `length_difference` (the
                length-difference encoding of Takase and Okazaki 2019); padding has any number below L.
            packing: of the real positions; then nothing is computed for the others, and their states are 0.

        Returns:
            (B, L, D).
        """
        time = F.silu(self.timestep_embedding(timestep))  # (B, D)
        embedded = self._embed(noised_tokens)  # (B, L, D)
        if self.difference_embedding is not None:
            embedded = embedded + self.difference_embedding(following)
        if self.training and torch.is_autocast_enabled(embedded.device.type):
            # the residual stream too: half the bytes to move, which is what a step on a CPU waits for
            embedded = embedded.to(torch.get_autocast_dtype(embedded.device.type))
        hidden = self.dropout(embedded if packing is None else packing.pack(embedded))
        for block, layer_keys_values in zip(self.blocks, keys_values.layers, strict=True):
            arguments = (
                hidden,
                time,
                layer_keys_values,
                may_attend.unsqueeze(1),
                packing,
                keys_values.may_see,
            )
            hidden = self.run_block(block, *arguments)
        normed: Tensor = self.final_norm(hidden)
        return normed if packing is None else packing.unpack(normed)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., V): the head is the token embedding; pass only the positions that are needed."""
        return F.linear(hidden, self.token_embedding.weight)

    def _each_block(self) -> Iterator[Block]:
        return cast("Iterator[Block]", iter(self.blocks))

    def _embed(self, noised_tokens: Tensor) -> Tensor:
        is_mask = (noised_tokens == self.mask_id).unsqueeze(2)
        words = self.token_embedding(noised_tokens.clamp(max=self.mask_id - 1))
        positions = self.position_embedding.weight[: noised_tokens.shape[1]]
        return torch.where(is_mask, self.mask_embedding.to(words.dtype), words) + positions

    def _initialise(self) -> None:
        """GPT-2's initialisation; the adaptive norms start as plain layer norms."""
        gpt2_initialise(self, list(self._each_block()))
        nn.init.normal_(self.mask_embedding, std=0.02)
        for block in self._each_block():
            for norm in (block.norm_self, block.norm_cross, block.norm_mlp):
                nn.init.zeros_(norm.linear.weight)


def gpt2_initialise(part: nn.Module, blocks: Sequence[Any]) -> None:
    """GPT-2's initialisation of a stack: normal weights, smaller where a block writes to the residual stream.

    Args:
        part: everything to initialise.
        blocks: its blocks, with `self_attention.output`, `cross_attention.output` and `mlp[2]`.
    """
    for module in part.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    for block in blocks:
        for residual in (block.self_attention.output, block.cross_attention.output, block.mlp[2]):
            nn.init.normal_(residual.weight, std=0.02 / math.sqrt(2 * len(blocks)))
