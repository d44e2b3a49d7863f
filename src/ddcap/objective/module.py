"""What a training minimises, as one module: a batch in, losses out.

It is what several processes wrap, so whatever reads a weight with a gradient happens inside its forward.
"""

from __future__ import annotations

from torch import nn

from ddcap.data.batches import CaptionBatch
from ddcap.model.kinds import CaptioningModel
from ddcap.objective.likelihood import Losses, batch_features, caption_loss
from ddcap.objective.noise import Noise
from ddcap.recipe import TrainingSettings


class Objective(nn.Module):
    """The likelihood of human captions.

    Args:
        model: of either kind.
        settings: the recipe's training section.
    """

    def __init__(self, model: CaptioningModel, settings: TrainingSettings) -> None:
        super().__init__()
        self.model = model
        self._settings = settings

    def forward(self, batch: CaptionBatch, noise: Noise | None) -> Losses:
        """Losses of one part of a step.

        Args:
            batch: on the model's device.
            noise: of the batch's images; only a diffusion model needs it.
        """
        return caption_loss(
            self.model,
            batch,
            batch_features(self.model, batch),
            noise,
            image_free_probability=self._settings.image_free_probability,
            label_smoothing=self._settings.label_smoothing,
        )
