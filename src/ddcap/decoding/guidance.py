"""What has a say in a prediction: the image-free branch (special design 4), and concepts that are seen.

Shapes: B captions, L positions, I images, K concepts of each, F forms, N concepts, V words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcap.data.concepts import NO_CONCEPT, ConceptSpelling, ConceptTokens
from ddcap.model.blocks import MemoryKeysValues
from ddcap.model.ddcap import DDCapModel

# Special design 4 at inference: equations 7 and 8, computed in one doubled batch.

Predictor = Callable[[Tensor, Tensor], Tensor]
"""(tokens (B, L), timestep (B,)) to log p(x_0 | x_t, y) (B, L, V), normalised."""


def guide(image_logits: Tensor, image_free_logits: Tensor, scale: float) -> Tensor:
    """Equations 7 and 8: log p(x_0|x_t, f) + s (log p(x_0|x_t, y) - log p(x_0|x_t, f)), normalised again.

    Args:
        image_logits: (..., V) with the image.
        image_free_logits: (..., V) with the image-free memory.
        scale: s; 1 gives the first, 0 the second.

    Returns:
        (..., V) log-probabilities.
    """
    image = F.log_softmax(image_logits.float(), dim=-1)
    image_free = F.log_softmax(image_free_logits.float(), dim=-1)
    return F.log_softmax(image_free + scale * (image - image_free), dim=-1)


def build_predictor(
    model: DDCapModel,
    keys_values: MemoryKeysValues,
    lengths: Tensor,
    scale: float,
    captions_per_image: int = 1,
) -> Predictor:
    """A function from noised tokens and timestep to log-probabilities, for a fixed batch of images.

    Args:
        model: in evaluation mode.
        keys_values: of I images (`DDCapModel.project_memory`), computed once and used at every step.
        lengths: (B,) with B = I * captions_per_image, grouped by image.
        scale: guidance s; 1 computes no image-free branch.
        captions_per_image: captions decoded side by side for each image.
    """
    if scale == 1:

        def predict(tokens: Tensor, timestep: Tensor) -> Tensor:
            hidden = model(tokens, timestep, lengths, keys_values)
            return F.log_softmax(model.denoiser.logits(hidden).float(), dim=-1)

        return predict

    images = lengths.shape[0] // captions_per_image
    both = keys_values.followed_by(model.image_free_keys_values().expand(images))
    both_lengths = lengths.repeat(2)

    def predict_guided(tokens: Tensor, timestep: Tensor) -> Tensor:
        hidden = model(tokens.repeat(2, 1), timestep.repeat(2), both_lengths, both)
        image_logits, image_free_logits = model.denoiser.logits(hidden).chunk(2)
        return guide(image_logits, image_free_logits, scale)

    return predict_guided


def forbid(predict: Predictor, token_id: int) -> Predictor:
    """`predict` with no probability for `token_id`, normalised again."""

    def predict_without(tokens: Tensor, timestep: Tensor) -> Tensor:
        log_probabilities = predict(tokens, timestep).clone()
        log_probabilities[..., token_id] = -torch.inf
        return F.log_softmax(log_probabilities, dim=-1)

    return predict_without


# What is seen in the picture has a say in what is written: concepts as evidence while a caption is decoded. A
# tagger knows rare words better than a captioner that has read them a few times. Not in the paper; it needs a
# model with concepts, and settings switch it off. Near to it: keyword-biased decoding (Pascual et al. 2021),
# and CLIP's say in MAGIC (Su et al. 2022).


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
