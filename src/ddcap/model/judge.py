"""A judge of finished captions: their likelihood read from left to right, in one parallel pass.

The sampler's own likelihood of a caption is that of the order in which it committed the tokens, each without
the ones that came later. A causal reading scores the caption as one sentence.

Shapes: B captions, I images (B a multiple of I: captions of one image lie side by side), L caption positions,
P memory positions, D width, V words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from ddcap.model.blocks import Block, gpt2_initialise
from ddcap.model.layers import RecomputingBlocks
from ddcap.settings import ModelSettings


class CausalJudge(RecomputingBlocks):
    """log p(word | words before it, memory) by a few causal blocks on the denoiser's words and memory.

    Args:
        settings: the recipe's model section; `judge_layers` blocks of its width.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.start_embedding = nn.Parameter(torch.empty(settings.width))
        self.position_embedding = nn.Embedding(settings.max_length, settings.width)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings, reads_time=False) for _ in range(settings.judge_layers))
        self.final_norm = nn.LayerNorm(settings.width)
        gpt2_initialise(self, list(self.each_block()))
        nn.init.normal_(self.start_embedding, std=0.02)

    def each_block(self) -> Iterator[Block]:
        """The blocks, from the words on."""
        return cast("Iterator[Block]", iter(self.blocks))

    def forward(self, tokens: Tensor, words: Tensor, memory: Tensor, visible: Tensor | None = None) -> Tensor:
        """Hidden states (B, L, D); times `words` they are the logits of every token given those before it.

        Args:
            tokens: (B, L) whole captions, end token included; what lies behind the end is read by nobody.
            words: (V, D) the token embedding.
            memory: (I, P, D).
            visible: (I, P) True where there is something to see; None: everywhere.
        """
        length = tokens.shape[1]
        start = self.start_embedding.to(words.dtype).expand(len(tokens), 1, -1)
        embedded = torch.cat([start, words[tokens[:, :-1]]], dim=1) + self.position_embedding.weight[:length]
        hidden = self.dropout(embedded)
        causal = causal_mask(length, tokens.device)
        may_see = None if visible is None else visible[:, None, None]
        for block in self.each_block():
            keys_values = block.cross_attention.keys_values(memory)
            hidden, _ = self.run_block(block, hidden, keys_values, causal, may_see)
        normed: Tensor = self.final_norm(hidden)
        return normed


def causal_mask(length: int, device: torch.device) -> Tensor:
    """(L, L) True where a position may attend to another: to itself and to those before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
