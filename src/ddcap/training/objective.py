"""The training loss: L_x0 = -log p(x_0 | x_t, y) over all real positions, and the length's cross-entropy.

The autoregressive twin's is -log p(word | words before it, y) over the same positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcap.data.batches import CaptionBatch
from ddcap.diffusion.transition import q_sample
from ddcap.model.autoregressive import AutoregressiveModel
from ddcap.model.ddcap import DDCapModel
from ddcap.model.image_encoder import ImageFeatures


@dataclass(frozen=True)
class Losses:
    """Mean losses of a batch, as scalar tensors with gradient.

    Attributes:
        token: mean over the batch's real positions.
        length: mean over its captions; 0 without a length head.
        reward: mean over the captions drawn, in self-critical training.
    """

    token: Tensor
    length: Tensor
    reward: Tensor | None = None


def caption_loss(
    model: torch.nn.Module,
    batch: CaptionBatch,
    features: ImageFeatures | None,
    *,
    generator: torch.Generator,
    image_free_probability: float = 0.0,
    label_smoothing: float = 0.0,
) -> Losses:
    """Noise a batch, predict it, score the prediction.

    Args:
        model: of either kind, or one wrapped for several processes.
        batch: on the model's device.
        features: of the batch's images; None for captions without pictures.
        generator: draws t, the noise and who loses the image; on the batch's device.
        image_free_probability: p of special design 4.
        label_smoothing: share of the target spread over the vocabulary.
    """
    inner = model if isinstance(model, DDCapModel | AutoregressiveModel) else model.module
    device, captions = batch.tokens.device, batch.tokens.shape[0]
    target = batch.tokens.flatten()[batch.positions]  # (N,)
    if isinstance(inner, AutoregressiveModel):
        logits = model(batch.tokens, features, positions=batch.positions)
        token_loss = F.cross_entropy(logits.float(), target, label_smoothing=label_smoothing)
        return Losses(token_loss, torch.zeros((), device=device))
    assert isinstance(inner, DDCapModel)
    schedule = inner.schedule
    timestep = torch.randint(schedule.steps, (captions,), generator=generator, device=device)
    noised = q_sample(batch.tokens, timestep, schedule, generator)
    use_image = None
    if image_free_probability and features is not None:
        images = features.memory.shape[0]
        use_image = torch.rand(images, generator=generator, device=device) >= image_free_probability
    output = model(noised, timestep, batch.lengths, features, use_image=use_image, positions=batch.positions)
    token_loss = F.cross_entropy(output.logits.float(), target, label_smoothing=label_smoothing)
    if output.length_logits is None or features is None:
        return Losses(token_loss, torch.zeros((), device=device))
    length_logits = output.length_logits.float().repeat_interleave(
        captions // len(features.memory), dim=0
    )  # (B, .)
    return Losses(token_loss, F.cross_entropy(length_logits, batch.lengths - 1))
