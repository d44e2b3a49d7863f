"""The likelihood of human captions and of their lengths.

L_x0 = -log p(x_0 | x_t, y) over all real positions, and the cross-entropy of the length head.
The autoregressive twin's is -log p(word | words before it, y) over the same positions.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcap.data.batches import CaptionBatch
from ddcap.model.autoregressive import AutoregressiveModel
from ddcap.model.image_encoder import ImageFeatures
from ddcap.model.kinds import CaptioningModel
from ddcap.objective.linear_cross_entropy import linear_cross_entropy
from ddcap.objective.noise import Noise


class Losses(NamedTuple):
    """Mean losses of a batch, as scalar tensors with gradient.

    A tuple, because what shards a model over processes looks for tensors in tuples only.

    Attributes:
        token: mean over the batch's real positions.
        length: mean over its captions; 0 without a length head.
    """

    token: Tensor
    length: Tensor


def caption_loss(
    model: CaptioningModel,
    batch: CaptionBatch,
    features: ImageFeatures | None,
    noise: Noise | None,
    *,
    image_free_probability: float = 0.0,
    label_smoothing: float = 0.0,
) -> Losses:
    """Noise a batch, predict it, score the prediction.

    Args:
        model: of either kind.
        batch: on the model's device.
        features: of the batch's images; None for captions without pictures.
        noise: of the batch's images; an autoregressive model needs none.
        image_free_probability: p of special design 4.
        label_smoothing: share of the target spread over the vocabulary.
    """
    length_logits = None
    use_image = None
    if image_free_probability and features is not None and features.memory is not None and noise is not None:
        use_image = noise.image >= image_free_probability
    if isinstance(model, AutoregressiveModel):
        hidden = model.hidden(batch.tokens, features, use_image)  # (B, L, D)
        weight = model.decoder.token_embedding.weight
    else:
        assert noise is not None
        noised, timestep = noise.add_to(batch.tokens, model.schedule), noise.timestep.flatten()
        keys_values = model.keys_values(features, use_image)
        hidden = model.hidden(noised, timestep, batch.lengths, keys_values)  # (B, L, D)
        weight = model.denoiser.token_embedding.weight
        length_logits = None if features is None else model.length_logits(features)
    hidden = hidden.flatten(0, 1)[batch.positions]  # (N, D): the head is the widest layer, spare it padding
    target = batch.tokens.flatten()[batch.positions]  # (N,)
    token_loss = linear_cross_entropy(hidden, weight, target, label_smoothing=label_smoothing)
    if length_logits is None:
        return Losses(token_loss, torch.zeros((), device=target.device))
    captions = len(batch.lengths) // len(length_logits)
    length_logits = length_logits.float().repeat_interleave(captions, dim=0)  # (B, .)
    return Losses(token_loss, F.cross_entropy(length_logits, batch.lengths - 1))


def batch_features(model: CaptioningModel, batch: CaptionBatch) -> ImageFeatures | None:
    """The batch's cached features, or the encoder's output on its pixels (no gradient if it is frozen).

    None for captions without pictures.
    """
    if batch.memory is not None and batch.summary is not None:
        features = ImageFeatures(batch.memory, batch.summary, batch.concepts)
        return features if batch.concepts is not None else model.encoder.with_concepts(features)
    if batch.pixels is None:
        return None if batch.concepts is None else ImageFeatures(None, None, batch.concepts)
    with torch.set_grad_enabled(torch.is_grad_enabled() and model.config.encoder.trainable):
        features = model.encoder(batch.pixels)
    return features if batch.concepts is None else dataclasses.replace(features, concepts=batch.concepts)
