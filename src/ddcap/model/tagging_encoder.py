"""An image encoder that also says which concepts it sees: EfficientNet-Lite with a tagger.

Shapes: B pictures, P image positions, C channels, E numbers of evidence, N concepts, K concepts kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcap.data.images import Preprocessing
from ddcap.model.image_encoder import EfficientNetLiteEncoder, ImageFeatures, digest
from ddcap.model.tagger import IMAGENET_CLASSES, Tagger
from ddcap.recipe import EncoderSettings

_MEAN, _SCALE = 127.0, 128.0  # EfficientNet-Lite's own


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
        # a larger picture, brought to size here: what other networks than this one would look at, too
        self.preprocessing = Preprocessing(
            settings.picture_size, settings.fit, mean=(0.0,) * 3, std=(1 / 255,) * 3
        )
        self.image_size = settings.image_size
        self.kept = settings.concepts
        self.summary_width = self.memory_width + IMAGENET_CLASSES
        self.tagger = Tagger(self.summary_width, concepts, classes_at=self.memory_width)

    @property
    def cache_key(self) -> str:
        """Of what memory and evidence depend on; the tagger is computed anew, whatever the cache holds."""
        return f"{type(self).__name__}-{digest(self.network)}-{self.image_size}"

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """Encode `pixels` (B, 3, H, W) from 0 to 255."""
        size = (self.image_size, self.image_size)
        small = F.interpolate(pixels.float(), size, mode="bicubic", antialias=True, align_corners=False)
        features = super().forward((small.clamp(0, 255) - _MEAN) / _SCALE)
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

    def _keep_frozen(self, before: int) -> None:
        """The tagger is trained by `ddcap tagger` only."""
        super()._keep_frozen(before)
        for part in (self.tagger, self.network._fc):
            part.requires_grad_(False)
