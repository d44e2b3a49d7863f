"""What a training minimises, as one module: a batch in, losses out.

It is what several processes wrap, so whatever reads a weight with a gradient happens inside its forward.
"""

from __future__ import annotations

import torch
from torch import nn

from ddcap.data.batches import CaptionBatch
from ddcap.model.kinds import CaptioningModel
from ddcap.objective.likelihood import Losses, batch_features, caption_loss
from ddcap.objective.noise import Noise
from ddcap.objective.self_critical import CiderReward, self_critical_loss
from ddcap.recipe import Recipe


class Objective(nn.Module):
    """The likelihood of human captions, or the score of drawn ones, or both, as a recipe says.

    Args:
        model: of either kind.
        recipe: all settings.
        end_id: the end token.
        reward: what drawn captions are scored by; needed where the recipe's objective is self-critical.
    """

    def __init__(
        self, model: CaptioningModel, recipe: Recipe, *, end_id: int, reward: CiderReward | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self._recipe = recipe
        self._end_id = end_id
        self._reward = reward

    def forward(self, batch: CaptionBatch, noise: Noise | None, generator: torch.Generator) -> Losses:
        """Losses of one part of a step.

        Args:
            batch: on the model's device.
            noise: of the batch's images; only a diffusion model's likelihood needs it.
            generator: draws captions; on the same device.
        """
        model, settings, critical = self.model, self._recipe.training, self._recipe.self_critical
        features = batch_features(model, batch)
        if settings.objective == "likelihood" or critical.likelihood:
            human = caption_loss(
                model,
                batch,
                features,
                noise,
                image_free_probability=settings.image_free_probability,
                label_smoothing=settings.label_smoothing,
            )
        if settings.objective == "likelihood":
            return human
        assert features is not None and self._reward is not None  # the recipe sees to it
        drawn = self_critical_loss(
            model,
            batch,
            features,
            self._reward,
            critical,
            self._recipe.decoding,
            end_id=self._end_id,
            generator=generator,
        )
        if not critical.likelihood:
            return drawn
        return drawn._replace(
            token=critical.likelihood * human.token, length=critical.likelihood * human.length
        )
