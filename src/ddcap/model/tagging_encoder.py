"""An image encoder that also says which concepts it sees: EfficientNet-Lite, a detector, and a tagger.

Shapes: B pictures, P image positions, C channels, E numbers of evidence, N concepts, K concepts kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcap.data.images import Preprocessing
from ddcap.model.detector import DEEPEST_CHANNELS, CenterNet
from ddcap.model.image_encoder import EfficientNetLiteEncoder, ImageFeatures, digest
from ddcap.model.object_classes import CLASS_NAMES
from ddcap.model.tagger import IMAGENET_CLASSES, Tagger
from ddcap.recipe import EncoderSettings

_MEAN, _SCALE = 127.0, 128.0  # EfficientNet-Lite's own
_OBJECTS = len(CLASS_NAMES)
_LEAST = 1e-4  # of a probability, before its logarithm


class TaggingEncoder(EfficientNetLiteEncoder):
    """EfficientNet-Lite's positions as the memory; concepts from its classes and from detected objects.

    The summary is the tagger's evidence: EfficientNet's mean feature, the log-probabilities of its ImageNet
    classes, and for every object class of the detector the hottest point and the size of the box there, and
    the detector's own mean feature.

    Args:
        settings: the recipe's encoder section.
        concepts: N.
        pretrained: whether EfficientNet gets its published weights. Detector and tagger come from a
            checkpoint.
    """

    def __init__(self, settings: EncoderSettings, concepts: int, *, pretrained: bool = True) -> None:
        super().__init__(settings, pretrained=pretrained, classifier=True)
        # one picture for both networks; the detector wants values from 0 to 255
        self.preprocessing = Preprocessing(
            settings.detector_size, settings.fit, mean=(0.0,) * 3, std=(1 / 255,) * 3
        )
        self.image_size = settings.image_size
        self.kept = settings.concepts
        self.detector = CenterNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.summary_width = self.memory_width + IMAGENET_CLASSES + 2 * _OBJECTS + DEEPEST_CHANNELS
        self.tagger = Tagger(self.summary_width, concepts, classes_at=self.memory_width)

    @property
    def cache_key(self) -> str:
        """Of what memory and evidence depend on; the tagger is computed anew, whatever the cache holds."""
        parts = f"{digest(self.network)}-{digest(self.detector)}-{self.image_size}"
        return f"{type(self).__name__}-{parts}"

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """Encode `pixels` (B, 3, H, W) from 0 to 255."""
        size = (self.image_size, self.image_size)
        small = F.interpolate(pixels.float(), size, mode="bicubic", antialias=True, align_corners=False)
        features = super().forward((small.clamp(0, 255) - _MEAN) / _SCALE)
        assert features.memory is not None and features.summary is not None
        classes = self.network._fc(features.summary).float().log_softmax(dim=1)
        evidence = torch.cat([features.summary.float(), classes, self._objects(pixels)], dim=1)
        return self.with_concepts(ImageFeatures(features.memory, evidence))

    def with_concepts(self, features: ImageFeatures) -> ImageFeatures:
        """The K likeliest concepts, from the evidence in the summary."""
        assert features.summary is not None
        return ImageFeatures(
            features.memory, features.summary, self.tagger.strongest(features.summary, self.kept)
        )

    def _keep_frozen(self, before: int) -> None:
        """Detector and tagger are trained by `ddcap tagger` only."""
        super()._keep_frozen(before)
        for part in (self.detector, self.tagger, self.network._fc):
            part.requires_grad_(False)

    def _objects(self, pixels: Tensor) -> Tensor:
        """What the detector sees: (B, 2 * 80 + 480)."""
        with torch.autocast(pixels.device.type, enabled=False):  # half precision moves its scores by 0.05
            maps = self.detector(pixels.float().contiguous(memory_format=torch.channels_last))
        heat, cells = maps.heat.float().flatten(2).max(dim=2)  # (B, 80)
        sides = maps.sizes.float().flatten(2)  # (B, 2, h w)
        boxes = sides.gather(2, cells.unsqueeze(1).expand(-1, 2, -1)).clamp(min=1) / pixels.shape[-1]
        area = boxes.log().sum(dim=1)  # (B, 80)
        deepest = maps.deepest.float().mean(dim=(2, 3))
        return torch.cat([heat.clamp(_LEAST, 1 - _LEAST).logit(), area, deepest], dim=1)
