"""CLIP as an image encoder, by `transformers`: from a folder or the Hub.

Shapes: B pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from ddcap.data.images import Preprocessing
from ddcap.errors import CheckpointError, MissingExtraError, RecipeError
from ddcap.model.image_encoder import ImageEncoder, ImageFeatures
from ddcap.recipe import EncoderSettings

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
        self.preprocessing = Preprocessing(
            settings.image_size,
            settings.fit,
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
        )
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
        f"encoder.name={where}: no CLIP vision model could be loaded ({first_line}); "
        "give a folder or Hub id of one"
    )
