"""Evidence about a picture to the probability of every concept that a person would name it.

Shapes: B pictures, E numbers of evidence, N concepts, K concepts kept, M names of classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcap.data.concepts import NO_CONCEPT, ConceptTokens

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
        total = missed.new_zeros(len(evidence), self.output.out_features)
        there = -torch.expm1(total.index_add(1, self.name_concept, missed))
        return (there + _LEAST).log() - (1 - there + _LEAST).log()

    def forward(self, evidence: Tensor) -> Tensor:
        """Logits (B, N) of `evidence` (B, E)."""
        normed = self.dropout_in((evidence.float() - self.mean) * self.scale)
        hidden = self.dropout(F.gelu(self.hidden(normed)))
        logits: Tensor = self.output(hidden) + self.from_names * self.named(evidence)
        return logits

    def strongest(self, evidence: Tensor, count: int) -> ConceptTokens:
        """The `count` likeliest concepts of each picture, likeliest first, without the faintest."""
        return strongest(self(evidence).sigmoid(), count)


def strongest(probabilities: Tensor, count: int) -> ConceptTokens:
    """The `count` likeliest of `probabilities` (B, N), likeliest first, without those under FAINTEST."""
    confidences, ids = probabilities.topk(min(count, probabilities.shape[1]), dim=1)
    is_faint = confidences < FAINTEST
    return ConceptTokens(ids.masked_fill(is_faint, NO_CONCEPT), confidences.masked_fill(is_faint, 0.0))
