"""Special design 4 at inference: equations 7 and 8, computed in one doubled batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcap.model.ddcap import DDCapModel
from ddcap.model.denoiser import MemoryKeysValues

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
            hidden = model.hidden(tokens, timestep, lengths, keys_values)
            return F.log_softmax(model.denoiser.logits(hidden).float(), dim=-1)

        return predict

    images = lengths.shape[0] // captions_per_image
    both = keys_values.followed_by(model.image_free_keys_values().expand(images))
    both_lengths = lengths.repeat(2)

    def predict_guided(tokens: Tensor, timestep: Tensor) -> Tensor:
        hidden = model.hidden(tokens.repeat(2, 1), timestep.repeat(2), both_lengths, both)
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
