"""Noised tokens, timestep and image memory to a prediction of the clean caption.

The release's architecture: the shared stack of blocks without a causal mask, its layer norms' scale and shift
from the timestep.

Shapes: B captions, I images (B a multiple of I: captions of one image lie side by side and share its keys and
values), L caption positions, D width, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcap.model.blocks import BlockStack, MemoryKeysValues
from ddcap.model.layers import AdaptiveLayerNorm, ScaleShift, TimestepEmbedding
from ddcap.model.packing import ChosenPacking, Packing
from ddcap.settings import ModelSettings


class Denoiser(BlockStack):
    """p_theta(x_0 | x_t, memory) at every caption position.

    Args:
        settings: the recipe's model section.
        vocabulary_size: V; the id V is MASK and has its own input vector.
        steps: T, which scales the timestep embedding.
    """

    def __init__(self, settings: ModelSettings, vocabulary_size: int, steps: int) -> None:
        super().__init__(settings, vocabulary_size)
        width = settings.width
        self.mask_id = vocabulary_size
        self.mask_embedding = nn.Parameter(torch.empty(width))
        self.difference_embedding = (
            nn.Embedding(settings.max_length, width) if settings.length_difference else None
        )
        self.timestep_embedding = TimestepEmbedding(width, steps)
        # 0 at first, and nothing is drawn for it: a training starts from the weights of one without it
        self.guess_projection = (
            nn.Parameter(torch.zeros(width, width)) if settings.self_conditioning else None
        )
        # tells a causal reading from denoising; 0 at first, and nothing is drawn for it
        self.reading_embedding = nn.Parameter(torch.zeros(width)) if settings.judge == "shared" else None
        self._add_blocks(settings, adaptive=True)
        nn.init.normal_(self.mask_embedding, std=0.02)
        for block in self.each_block():  # the adaptive norms start as plain layer norms
            for norm in (block.norm_self, block.norm_cross, block.norm_mlp):
                assert isinstance(norm, AdaptiveLayerNorm)
                nn.init.zeros_(norm.linear.weight)

    def forward(
        self,
        noised_tokens: Tensor,
        timestep: Tensor,
        keys_values: MemoryKeysValues,
        self_attn_mask: Tensor,
        following: Tensor | None = None,
        packing: Packing | None = None,
        scale_shift: Sequence[Sequence[Tensor]] | Tensor | None = None,
        guess: Tensor | None = None,
        is_read: Tensor | None = None,
        asked: Tensor | ChosenPacking | None = None,
    ) -> Tensor:
        """Hidden states of caption positions; `logits` turns them into a prediction.

        Args:
            noised_tokens: (B, L) x_t.
            timestep: (B,) t.
            keys_values: of I images; the B captions are grouped by image.
            self_attn_mask: (B, L, L) boolean, see `self_attn_mask`.
            following: (B, L) number of tokens behind each position, for models with `length_difference` (the
                length-difference encoding of Takase and Okazaki 2019); padding has any number below L.
            packing: of the positions that are computed; others have states of 0, or of any position with a
                chosen packing.
            scale_shift: of `adaln_scale_shift`, where it is known.
            guess: (B, L) for models with `self_conditioning`, words that were predicted before, -1 for none;
                only those at MASK are read.
            is_read: (B,) captions that are read from left to right, for models with a shared judge. They are
                not told how many tokens follow.
            asked: (B, n) positions whose states are wanted, or with a chosen packing n of its positions;
                None: all. What the others would get from the last block is then not computed.

        Returns:
            (B, L, D), or (B, n, D), or of packed positions (n, D).
        """
        time: Any = F.silu(self.timestep_embedding(timestep)) if scale_shift is None else None  # (B, D)
        embedded = self._embed(noised_tokens)  # (B, L, D)
        if guess is not None and self.guess_projection is not None:
            has_guess = ((noised_tokens == self.mask_id) & (guess >= 0)).unsqueeze(2)
            guessed = F.linear(self.token_embedding(guess.clamp(min=0)), self.guess_projection)
            embedded = embedded + torch.where(has_guess, guessed, 0)
        if self.difference_embedding is not None:
            difference = self.difference_embedding(following)
            if is_read is not None:
                difference = difference.masked_fill(is_read.view(-1, 1, 1), 0.0)
            embedded = embedded + difference
        if is_read is not None:
            assert self.reading_embedding is not None
            embedded = embedded + is_read.view(-1, 1, 1) * self.reading_embedding
        if self.training and torch.is_autocast_enabled(embedded.device.type):
            # the residual stream too: half the bytes to move, which is what a step on a CPU waits for
            embedded = embedded.to(torch.get_autocast_dtype(embedded.device.type))
        hidden = self.dropout(embedded if packing is None else packing.pack(embedded))
        masks = (self_attn_mask.unsqueeze(1), keys_values.memory_mask)
        for number, (block, layer) in enumerate(zip(self.blocks, keys_values.layers, strict=True)):
            last = asked if number == len(self.blocks) - 1 else None
            if scale_shift is not None:
                time = _scale_shift_at(scale_shift[number], timestep, packing, last)
            hidden, _ = self.run_block(block, hidden, layer, *masks, time=time, packing=packing, asked=last)
        normed: Tensor = self.final_norm(hidden)
        return normed if packing is None or asked is not None else packing.unpack(normed)

    def adaln_scale_shift(self) -> Tensor:
        """Compute what the adaptive norms take from every timestep: (layers, 6, T, D). Decoding does so once.

        The three norms' factors, then their shifts.
        """
        steps = torch.arange(self.timestep_embedding.steps, device=self.mask_embedding.device)
        time = F.silu(self.timestep_embedding(steps))  # (T, D)
        layers = []
        for block in self.each_block():
            norms: list[Any] = [block.norm_self, block.norm_cross, block.norm_mlp]
            scales, shifts = zip(*(norm.linear(time).chunk(2, dim=1) for norm in norms), strict=True)
            layers.append(torch.stack([*(1 + scale for scale in scales), *shifts]))
        return torch.stack(layers)

    def _embed(self, noised_tokens: Tensor) -> Tensor:
        is_mask = (noised_tokens == self.mask_id).unsqueeze(2)
        words = self.token_embedding(noised_tokens.clamp(max=self.mask_id - 1))
        positions = self.position_embedding.weight[: noised_tokens.shape[1]]
        return torch.where(is_mask, self.mask_embedding.to(words.dtype), words) + positions


def _scale_shift_at(
    tables: Sequence[Tensor] | Tensor,
    timestep: Tensor,
    packing: Packing | None,
    asked: Tensor | ChosenPacking | None,
) -> tuple[ScaleShift, ...]:
    """Factor and shift of a block's three norms.

    Args:
        tables: six of (T, D), see `Denoiser.adaln_scale_shift`.
        timestep: (B,).
        packing: of the hidden states, or None.
        asked: positions that are left behind the self-attention.
    """
    if packing is None:
        parts = [F.embedding(timestep, table).unsqueeze(1) for table in tables]  # (B, 1, D)
        return tuple(zip(parts[:3], parts[3:], strict=True))
    before = packing.spread(timestep)  # (N,)
    behind = asked.spread(timestep) if isinstance(asked, ChosenPacking) else before
    parts = [F.embedding(before if norm % 3 == 0 else behind, table) for norm, table in enumerate(tables)]
    return tuple(zip(parts[:3], parts[3:], strict=True))
