"""An image encoder that also says which concepts it sees: EfficientNet-Lite with a tagger.

Shapes: B pictures, P image positions, C channels, E numbers of evidence, N concepts, K concepts kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddcap.model.image_encoder import EfficientNetLiteEncoder, ImageFeatures, digest
from ddcap.model.tagger import IMAGENET_CLASSES, Tagger
from ddcap.recipe import EncoderSettings


class TaggingEncoder(EfficientNetLiteEncoder):
    """EfficientNet-Lite's positions as the memory; concepts from its features and its ImageNet classes.

    The summary is the tagger's evidence: the mean feature and the log-probabilities of the classes.

    Args:
        settings: the recipe's encoder section.
        concepts: N.
        pretrained: whether EfficientNet gets its published weights. The tagger comes from a checkpoint.
    """

    def __init__(self, settings: EncoderSettings, concepts: int, *, pretrained: bool = True) -> None:
        super().__init__(settings, pretrained=pretrained, classifier=True)
        self.kept = settings.concepts
        self.summary_width = self.memory_width + IMAGENET_CLASSES
        self.tagger = Tagger(self.summary_width, concepts, classes_at=self.memory_width)

    @property
    def cache_key(self) -> str:
        """Of what memory and evidence depend on; the tagger is computed anew, whatever the cache holds."""
        return f"{type(self).__name__}-{digest(self.network)}"

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """Encode `pixels` (B, 3, H, W)."""
        features = super().forward(pixels)
        assert features.memory is not None and features.summary is not None
        classes = self.network._fc(features.summary).float().log_softmax(dim=1)
        evidence = torch.cat([features.summary.float(), classes], dim=1)
        return self.with_concepts(ImageFeatures(features.memory, evidence))

    def with_concepts(self, features: ImageFeatures) -> ImageFeatures:
        """The K likeliest concepts, from the evidence in the summary."""
        assert features.summary is not None
        return ImageFeatures(
            features.memory, features.summary, self.tagger.strongest(features.summary, self.kept)
        )

    def _keep_frozen(self) -> None:
        """The tagger is trained by `ddcap tagger` only."""
        for part in (self.tagger, self.network._fc):
            part.requires_grad_(False)
