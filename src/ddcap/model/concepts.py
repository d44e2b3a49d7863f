"""Concepts in the model: the tagger that sees them in an image, and their positions in the memory.

The encoder that holds a tagger is `TaggingEncoder` in `model/encoders.py`.

Shapes: B images, E numbers of evidence, N concepts known, K concepts of an image, M names of classes, P
image positions, C channels, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcap.data.concepts import NO_CONCEPT, ConceptTokens
from ddcap.model.features import ImageFeatures

# Evidence about an image to the probability of every concept that a person would name it.

IMAGENET_CLASSES = 1000
FAINTEST = 0.02
"""Confidence under which a concept is left out."""

_NAMES = 8192  # rows of the table of names, most of them used
_LEAST = 1e-3  # of a probability, before its logarithm


class Tagger(nn.Module):
    """A logit for every concept, from two ways that meet.

    What the names of ImageNet's classes say by themselves counts with a learned weight, so that a word that
    no training caption uses is named all the same. A narrow network over all the evidence adds what captions
    call things that are no class.

    Args:
        evidence: E.
        concepts: N.
        classes_at: where in the evidence the ImageNet log-probabilities begin.
        width: of the hidden layer.
    """

    mean: Tensor
    scale: Tensor
    name_class: Tensor
    name_concept: Tensor
    name_weight: Tensor

    def __init__(self, evidence: int, concepts: int, *, classes_at: int, width: int = 256) -> None:
        super().__init__()
        self.classes_at = classes_at
        self.register_buffer("mean", torch.zeros(evidence))
        self.register_buffer("scale", torch.ones(evidence))
        # a class, a concept that its name stands for, and how surely; rows of weight 0 are empty
        self.register_buffer("name_class", torch.zeros(_NAMES, dtype=torch.long))
        self.register_buffer("name_concept", torch.zeros(_NAMES, dtype=torch.long))
        self.register_buffer("name_weight", torch.zeros(_NAMES))
        self.hidden = nn.Linear(evidence, width)
        self.output = nn.Linear(width, concepts)
        self.from_names = nn.Parameter(torch.full((concepts,), 0.5))
        self.dropout_in, self.dropout = nn.Dropout(0.0), nn.Dropout(0.0)

    def set_names(self, names: Sequence[tuple[int, int, float]]) -> None:
        """Say what the classes are called.

        Args:
            names: (ImageNet class, concept, weight from 0 to 1).
        """
        self.name_weight.zero_()
        for row, (number, concept, weight) in enumerate(names):
            self.name_class[row], self.name_concept[row], self.name_weight[row] = number, concept, weight

    def named(self, evidence: Tensor) -> Tensor:
        """Logits (B, N) of what class names alone say; very low for concepts that no class is called."""
        classes = evidence[:, self.classes_at : self.classes_at + IMAGENET_CLASSES].float().exp()
        # probability that at least one of a concept's classes is there
        missed = torch.log1p(-(classes[:, self.name_class] * self.name_weight).clamp(max=1 - _LEAST))
        total = missed.new_zeros(evidence.shape[0], self.output.out_features)
        there = -torch.expm1(total.index_add(1, self.name_concept, missed))
        return (there + _LEAST).log() - (1 - there + _LEAST).log()

    def forward(self, evidence: Tensor) -> Tensor:
        """Logits (B, N) of `evidence` (B, E)."""
        normed = self.dropout_in((evidence.float() - self.mean) * self.scale)
        hidden = self.dropout(F.gelu(self.hidden(normed)))
        logits: Tensor = self.output(hidden) + self.from_names * self.named(evidence)
        return logits

    def strongest(self, evidence: Tensor, count: int) -> ConceptTokens:
        """The `count` likeliest concepts of each image, likeliest first, without the faintest."""
        return strongest(self(evidence).sigmoid(), count)


def strongest(probabilities: Tensor, count: int) -> ConceptTokens:
    """The `count` likeliest of `probabilities` (B, N), likeliest first, without those under FAINTEST."""
    confidences, ids = probabilities.topk(min(count, probabilities.shape[1]), dim=1)
    is_faint = confidences < FAINTEST
    return ConceptTokens(ids.masked_fill(is_faint, NO_CONCEPT), confidences.masked_fill(is_faint, 0.0))


# Concepts seen in an image, as positions of the memory: a word each, with the confidence that it is there.

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
        self.levels = nn.Parameter(torch.randn(_LEVELS + 1, width).mul_(0.02))
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


class Remembering(Protocol):
    """A model whose memory may hold concepts."""

    @property
    def memory_projection(self) -> nn.Module:
        """Image positions (I, P, C) to (I, P, D)."""

    @property
    def image_free_memory(self) -> Tensor:
        """(F, D)."""

    @property
    def concept_embedding(self) -> ConceptEmbedding | None:
        """Concepts to memory positions; None in a model without concepts."""


def memory_with_concepts(
    model: Remembering, features: ImageFeatures, token_embedding: Tensor, use_image: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The memory of images, of their concepts, or of both.

    Args:
        model: of concepts.
        features: of I images, see `ImageFeatures`.
        token_embedding: (V, D).
        use_image: (I,) False hides an image's positions, not its concepts; None: all are seen.

    Returns:
        (I, F + P + K, D), and (I, F + P + K) True where there is something to see. The image-free memory is
        always seen; without an image P = 0.
    """
    images, device = features.images, token_embedding.device
    parts = [model.image_free_memory.expand(images, -1, -1)]
    mask = [torch.ones(parts[0].shape[:2], dtype=torch.bool, device=device)]
    if features.memory is not None:
        parts.append(model.memory_projection(features.memory))
        seen = torch.ones(images, dtype=torch.bool, device=device) if use_image is None else use_image
        mask.append(seen.unsqueeze(1).expand(-1, parts[-1].shape[1]))
    if features.concepts is not None and model.concept_embedding is not None:
        embedded, there = model.concept_embedding(features.concepts, token_embedding)
        parts.append(embedded)
        mask.append(there)
    dtype = parts[-1].dtype
    return torch.cat([part.to(dtype) for part in parts], dim=1), torch.cat(mask, dim=1)
