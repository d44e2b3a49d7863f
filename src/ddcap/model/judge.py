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

from ddcap.model.attention_mask import causal_mask
from ddcap.model.blocks import Block, gpt2_initialise
from ddcap.model.denoiser import Denoiser
from ddcap.model.layers import PlainLayerNorm, RecomputingBlocks
from ddcap.model.packing import Packing
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
        self.blocks = nn.ModuleList(Block(settings, adaptive=False) for _ in range(settings.judge_layers))
        self.final_norm = nn.LayerNorm(settings.width)
        gpt2_initialise(self, list(self.each_block()))
        nn.init.normal_(self.start_embedding, std=0.02)

    def each_block(self) -> Iterator[Block]:
        """The blocks, from the words on."""
        return cast("Iterator[Block]", iter(self.blocks))

    @torch.no_grad()
    def start_from(self, denoiser: Denoiser) -> None:
        """Take over the first blocks of a trained denoiser, with its norms as they are at t = 0.

        They read words and memory already; only the causal mask is new to them.
        """
        rows = self.position_embedding.num_embeddings
        self.position_embedding.weight.copy_(denoiser.position_embedding.weight[:rows])
        self.start_embedding.copy_(denoiser.mask_embedding)
        at_start = denoiser.adaln_scale_shift()[:, :, 0]  # (layers, 6, D)
        for ours, theirs, norms in zip(self.each_block(), denoiser.each_block(), at_start, strict=False):
            for part in ("self_attention", "cross_attention", "mlp"):
                getattr(ours, part).load_state_dict(getattr(theirs, part).state_dict())
            for place, norm in enumerate((ours.norm_self, ours.norm_cross, ours.norm_mlp)):
                assert isinstance(norm, PlainLayerNorm)
                norm.weight.copy_(norms[place])
                norm.bias.copy_(norms[3 + place])
        self.final_norm.load_state_dict(denoiser.final_norm.state_dict())

    def forward(
        self,
        tokens: Tensor,
        words: Tensor,
        memory: Tensor,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, L, D); times `words` they are the logits of every token given those before it.

        Args:
            tokens: (B, L) whole captions, end token included; what lies behind the end is read by nobody.
            words: (V, D) the token embedding.
            memory: (I, P, D).
            mask: (I, P) True at positions that may be attended to; None: all of them.
            lengths: (B,) tokens of each caption; then nothing is computed for what lies behind, and its
                states are 0.
        """
        captions, length = tokens.shape  # not `len`, which an exported graph takes for a constant
        start = self.start_embedding.to(words.dtype).expand(captions, 1, -1)
        embedded = torch.cat([start, words[tokens[:, :-1]]], dim=1) + self.position_embedding.weight[:length]
        packing = None
        if lengths is not None:
            packing = Packing(torch.arange(length, device=tokens.device) >= lengths.unsqueeze(1))
            embedded = packing.pack(embedded)
        hidden = self.dropout(embedded)
        causal = causal_mask(length, tokens.device)
        memory_mask = None if mask is None else mask[:, None, None]
        for block in self.each_block():
            keys_values = block.cross_attention.keys_values(memory)
            hidden, _ = self.run_block(block, hidden, keys_values, causal, memory_mask, packing=packing)
        normed: Tensor = self.final_norm(hidden)
        return normed if packing is None else packing.unpack(normed)
