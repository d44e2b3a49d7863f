"""The stack of blocks of both the denoiser and the autoregressive model: the paper's controlled comparison.

A block is the release's: GPT-2's with cross-attention to the image. What differs between the two models is
given to it: who may attend to whom, and whether layer norms read the timestep.

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
    PlainLayerNorm,
    RecomputingBlocks,
    ScaleShift,
    attend,
    join_heads,
    split_heads,
)
from ddcap.model.packing import ChosenPacking, Packing
from ddcap.settings import ModelSettings

KeysValues = tuple[Tensor, Tensor]
"""Keys and values (B, H, positions, D/H) of one attention."""


@dataclass(frozen=True)
class MemoryKeysValues:
    """The cross-attention's keys and values of some images, computed once per image.

    Attributes:
        layers: per layer the keys and the values, each (I, H, P, D/H).
        mask: (I, P) True at positions that may be attended to; None: all of them.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor | None = None

    @property
    def memory_mask(self) -> Tensor | None:
        """The mask as cross-attention takes it: (I, 1, 1, P)."""
        return None if self.mask is None else self.mask[:, None, None]

    def expand(self, images: int) -> MemoryKeysValues:
        """A single image as `images` images, without copying."""
        shape = (images, -1, -1, -1)
        layers = tuple((key.expand(shape), value.expand(shape)) for key, value in self.layers)
        return MemoryKeysValues(layers, None if self.mask is None else self.mask.expand(images, -1))

    def followed_by(self, other: MemoryKeysValues) -> MemoryKeysValues:
        """These images, then those of `other`, which may have fewer positions if they are masked."""
        pairs = zip(self.layers, other.layers, strict=True)
        missing = self.layers[0][0].shape[2] - other.layers[0][0].shape[2]
        layers = tuple(
            (
                torch.cat([k, F.pad(other_k, (0, 0, 0, missing))]),
                torch.cat([v, F.pad(other_v, (0, 0, 0, missing))]),
            )
            for (k, v), (other_k, other_v) in pairs
        )
        if self.mask is None or other.mask is None:
            return MemoryKeysValues(layers)
        return MemoryKeysValues(layers, torch.cat([self.mask, F.pad(other.mask, (0, missing))]))


def at_positions(values: Tensor, asked: Tensor) -> Tensor:
    """(B, ..., L, w) to (B, ..., n, w): the rows at positions `asked` (B, n)."""
    index = asked[:, None, :, None] if values.ndim == 4 else asked[:, :, None]
    shape = (*values.shape[:-2], asked.shape[1], values.shape[-1])
    return values.gather(values.ndim - 2, index.expand(shape))


class SelfAttention(nn.Module):
    """Multi-head self-attention with a boolean mask, over the words before, too, where they are given."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.heads = settings.heads
        self.dropout = settings.dropout
        self.query_key_value = nn.Linear(settings.width, 3 * settings.width)
        self.output = nn.Linear(settings.width, settings.width)

    def forward(
        self,
        hidden: Tensor,
        self_attn_mask: Tensor | None,
        packing: Packing | None = None,
        past: KeysValues | None = None,
        asked: Tensor | ChosenPacking | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """The output and the keys and values of all positions so far.

        Args:
            hidden: (B, L, D), or (N, D) packed.
            self_attn_mask: broadcast to (B, 1, L, positions so far); None: everybody to all.
            packing: of the real positions.
            past: keys and values of the positions before these.
            asked: (B, n) positions whose output is wanted, or with a packing some of its positions; None: of
                all. Of (B, n) the mask is (B, 1, L, L).
        """
        both = self.query_key_value(hidden)
        if packing is not None:
            both = packing.unpack(both)
        query, key, value = (split_heads(part, self.heads) for part in both.chunk(3, dim=2))  # (B, H, L, D/H)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        if isinstance(asked, Tensor):
            query = at_positions(query, asked)
            self_attn_mask = None if self_attn_mask is None else at_positions(self_attn_mask, asked)
        attended = attend(query, key, value, self_attn_mask, dropout=self.dropout if self.training else 0.0)
        joined = join_heads(attended)
        chosen = asked if isinstance(asked, ChosenPacking) else packing
        return self.output(joined if chosen is None else chosen.pack(joined)), (key, value)


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
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """`hidden` (B, L, D) against (I, H, P, D/H): an image's captions become one long row of queries.

        `hidden` may be (N, D) packed; `memory_mask` is (I, 1, 1, P).
        """
        query = self.query(hidden)
        if packing is not None:
            query = packing.unpack(query)
        batch, length, width = query.shape
        images = key.shape[0]
        query = split_heads(query.view(images, batch // images * length, width), self.heads)
        attended = attend(query, key, value, memory_mask, dropout=self.dropout if self.training else 0.0)
        joined = join_heads(attended).view(batch, length, width)
        projected: Tensor = self.output(joined if packing is None else packing.pack(joined))
        return projected


class Block(nn.Module):
    """Self-attention, cross-attention and MLP, each behind its layer norm.

    Args:
        settings: the recipe's model section.
        adaptive: whether the norms are adaptive (adaLN): scale and shift come from the timestep.
    """

    def __init__(self, settings: ModelSettings, *, adaptive: bool) -> None:
        super().__init__()
        width = settings.width
        norm: type[AdaptiveLayerNorm | PlainLayerNorm] = AdaptiveLayerNorm if adaptive else PlainLayerNorm
        self.norm_self = norm(width)
        self.self_attention = SelfAttention(settings)
        self.norm_cross = norm(width)
        self.cross_attention = CrossAttention(settings)
        self.norm_mlp = norm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(settings.dropout)

    def forward(
        self,
        hidden: Tensor,
        keys_values: KeysValues | None,
        self_attn_mask: Tensor | None,
        memory_mask: Tensor | None = None,
        time: Tensor | tuple[ScaleShift, ScaleShift, ScaleShift] | None = None,
        packing: Packing | None = None,
        past: KeysValues | None = None,
        asked: Tensor | ChosenPacking | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """One block, and its self-attention's keys and values.

        Args:
            hidden: (B, L, D), or (N, D) with a packing.
            keys_values: of the images, each (I, H, P, D/H); None leaves cross-attention out.
            self_attn_mask: see `SelfAttention.forward`.
            memory_mask: (I, 1, 1, P) positions of the images that are there; None: all.
            time: (B, D) of the timestep, for norms that read it; or what each of the three makes of it.
            packing: of the real positions.
            past: see `SelfAttention.forward`.
            asked: (B, n) positions that are wanted, or with a packing some of its positions; of the others
                only keys and values are computed. None: all.
        """
        times = time if isinstance(time, tuple) else (time, time, time)
        normed = self.norm_self(hidden, times[0], packing)
        attended, past = self.self_attention(normed, self_attn_mask, packing, past, asked)
        if isinstance(asked, ChosenPacking):
            assert isinstance(packing, ChosenPacking)  # of which the asked-for positions are some
            hidden, packing = hidden.index_select(0, packing.numbers_of(asked)), asked
        elif asked is not None:
            hidden = at_positions(hidden, asked)
        hidden = hidden + self.dropout(attended)
        if keys_values is not None:
            normed = self.norm_cross(hidden, times[1], packing)
            hidden = hidden + self.dropout(self.cross_attention(normed, *keys_values, packing, memory_mask))
        return hidden + self.dropout(self.mlp(self.norm_mlp(hidden, times[2], packing))), past


class BlockStack(RecomputingBlocks):
    """Word and position embeddings, blocks, final norm, and a head tied to the words.

    Args:
        settings: the recipe's model section.
        vocabulary_size: V.
    """

    def __init__(self, settings: ModelSettings, vocabulary_size: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary_size, settings.width)
        self.position_embedding = nn.Embedding(settings.positions or settings.max_length, settings.width)
        self.dropout = nn.Dropout(settings.dropout)

    def _add_blocks(self, settings: ModelSettings, *, adaptive: bool) -> None:
        """Make the blocks, behind whatever else the model embeds, and draw all weights as GPT-2 does."""
        self.blocks = nn.ModuleList(Block(settings, adaptive=adaptive) for _ in range(settings.layers))
        self.final_norm = nn.LayerNorm(settings.width)
        gpt2_initialise(self, list(self.each_block()))

    def each_block(self) -> Iterator[Block]:
        """The blocks, from the words on."""
        return cast("Iterator[Block]", iter(self.blocks))

    def project_memory(self, memory: Tensor, mask: Tensor | None = None) -> MemoryKeysValues:
        """Keys and values of every layer for `memory` (I, P, D); compute once, use at every step."""
        layers = tuple(block.cross_attention.keys_values(memory) for block in self.each_block())
        return MemoryKeysValues(layers, mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., V): the head is the token embedding; pass only the positions that are needed."""
        return F.linear(hidden, self.token_embedding.weight)


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
