"""What is seen in the picture has a say in what is written: concepts as evidence while a caption is decoded.

A tagger knows rare words better than a captioner that has read them a few times. Not in the paper; it needs a
model with concepts, and settings switch it off. Near to it: keyword-biased decoding (Pascual et al. 2021),
and CLIP's say in MAGIC (Su et al. 2022).

Shapes: B captions, L positions, I images, K concepts of each, F forms, N concepts, V words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcap.data.concept_spelling import ConceptSpelling
from ddcap.data.concepts import NO_CONCEPT, ConceptTokens
from ddcap.decoding.guidance import Predictor


@dataclass(frozen=True)
class ConceptEvidence:
    """Concepts seen in the pictures of a batch of captions, and how much they count.

    Attributes:
        seen: (B, N) confidence that a picture shows each concept; 0 of those that are not seen.
        spelling: of the model's concepts.
        mask_id: V.
        bonus: is added to the log-probability of the first token of a concept's word, times the confidence,
            until the caption names the concept.
        repeat_penalty: is taken from the log-probability of the words of concepts that are named already.
    """

    seen: Tensor
    spelling: ConceptSpelling
    mask_id: int
    bonus: float
    repeat_penalty: float

    @classmethod
    def of(
        cls,
        concepts: ConceptTokens,
        spelling: ConceptSpelling,
        mask_id: int,
        captions_per_image: int = 1,
        *,
        bonus: float = 0.0,
        repeat_penalty: float = 0.0,
    ) -> ConceptEvidence:
        """Spread the concepts (I, K) of pictures out; B = I * captions_per_image, grouped by image."""
        there = concepts.ids != NO_CONCEPT
        seen = torch.zeros(len(there), spelling.concepts, device=there.device)
        seen.scatter_add_(1, concepts.ids.clamp(min=0), concepts.confidences.float() * there)
        seen = seen.repeat_interleave(captions_per_image, dim=0)
        return cls(seen, spelling.to(seen.device), mask_id, bonus, repeat_penalty)

    def log_probability(self, tokens: Tensor) -> Tensor:
        """(B, V) what is added to every position's log-probabilities, given the tokens (B, L) so far."""
        spelling = self.spelling
        named = spelling.named(tokens, self.mask_id)  # (B, N)
        gain = (self.bonus * self.seen).masked_fill(named, 0.0)[:, spelling.concept]  # (B, F)
        added = gain.new_zeros(len(tokens), self.mask_id)
        added.scatter_reduce_(1, spelling.first.expand(len(tokens), -1), gain, "amax")
        whole = spelling.is_one_token
        loss = self.repeat_penalty * named[:, spelling.concept[whole]].float()
        taken = torch.zeros_like(added)
        taken.scatter_reduce_(1, spelling.first[whole].expand(len(tokens), -1), loss, "amax")
        return added - taken

    def said(self, tokens: Tensor) -> Tensor:
        """(B,) the confidences of all concepts that captions (B, L) name, added up."""
        return (self.seen * self.spelling.named(tokens, self.mask_id)).sum(dim=1)

    def repeat(self, times: int) -> ConceptEvidence:
        """The same for `times` captions of each, side by side."""
        seen = self.seen.repeat_interleave(times, dim=0)
        return ConceptEvidence(seen, self.spelling, self.mask_id, self.bonus, self.repeat_penalty)


def favour_concepts(predict: Predictor, evidence: ConceptEvidence) -> Predictor:
    """`predict` with the concepts' say, normalised again."""

    def predict_with_concepts(tokens: Tensor, timestep: Tensor) -> Tensor:
        added = evidence.log_probability(tokens).unsqueeze(1)  # (B, 1, V)
        return F.log_softmax(predict(tokens, timestep) + added, dim=-1)

    return predict_with_concepts
