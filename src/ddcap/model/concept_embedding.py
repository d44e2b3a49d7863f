"""Concepts seen in a picture, as positions of the memory: a word each, with the confidence that it is there.

Shapes: I images, K concepts of each, N concepts known, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddcap.data.concepts import NO_CONCEPT, ConceptTokens

_LONGEST = 4  # tokens of a concept's word
_LEVELS = 10  # of confidence, each with a vector of its own; in between they are mixed


class ConceptEmbedding(nn.Module):
    """Concepts to memory positions.

    A concept is what its word's tokens are in captions, so that the words of captions can be copied from the
    memory, plus a vector for the confidence.

    Args:
        concepts: N.
        width: D.
    """

    pieces: Tensor

    def __init__(self, concepts: int, width: int) -> None:
        super().__init__()
        self.register_buffer("pieces", torch.zeros(concepts, _LONGEST, dtype=torch.long))
        self.from_tokens = nn.Linear(width, width)
        self.levels = nn.Parameter(torch.randn(_LEVELS + 1, width) * 0.02)
        nn.init.eye_(self.from_tokens.weight)
        nn.init.zeros_(self.from_tokens.bias)

    def set_pieces(self, token_ids: Sequence[Sequence[int]]) -> None:
        """Say which tokens each concept's word has; beyond the first four they do not count."""
        for row, ids in enumerate(token_ids):
            kept = list(ids)[:_LONGEST]
            # a short word's tokens are repeated: the mean stays what it is for 1, 2 and 4 of them
            self.pieces[row] = torch.tensor((kept * _LONGEST)[:_LONGEST])

    def forward(self, concepts: ConceptTokens, token_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Memory positions and which of them there are.

        Args:
            concepts: of I images.
            token_embedding: (V, D) of the captions' tokens.

        Returns:
            (I, K, D), and (I, K) True where there is a concept.
        """
        there = concepts.ids != NO_CONCEPT
        ids = concepts.ids.clamp(min=0)
        words = token_embedding[self.pieces[ids]].mean(dim=2)  # (I, K, D)
        level = concepts.confidences.clamp(0, 1).unsqueeze(2) * _LEVELS  # (I, K, 1)
        low = level.floor().clamp(max=_LEVELS - 1)
        share, index = level - low, low.long().squeeze(2)
        confidence = (1 - share) * self.levels[index] + share * self.levels[index + 1]
        return self.from_tokens(words) + confidence, there


def memory_with_concepts(
    model: Any, features: Any, token_embedding: Tensor, use_image: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The memory of pictures, of their concepts, or of both.

    Args:
        model: has `memory_projection`, `image_free_memory` (F, D) and `concept_embedding`.
        features: of I images, see `ImageFeatures`.
        token_embedding: (V, D).
        use_image: (I,) False hides a picture's positions, not its concepts; None: all are seen.

    Returns:
        (I, F + P + K, D), and (I, F + P + K) True where there is something to see. The image-free memory is
        always seen; without a picture P = 0.
    """
    images, device = features.images, token_embedding.device
    parts = [model.image_free_memory.expand(images, -1, -1)]
    visible = [torch.ones(parts[0].shape[:2], dtype=torch.bool, device=device)]
    if features.memory is not None:
        parts.append(model.memory_projection(features.memory))
        seen = torch.ones(images, dtype=torch.bool, device=device) if use_image is None else use_image
        visible.append(seen.unsqueeze(1).expand(-1, parts[-1].shape[1]))
    if features.concepts is not None:
        embedded, there = model.concept_embedding(features.concepts, token_embedding)
        parts.append(embedded)
        visible.append(there)
    dtype = parts[-1].dtype
    return torch.cat([part.to(dtype) for part in parts], dim=1), torch.cat(visible, dim=1)
