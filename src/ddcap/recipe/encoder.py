"""The section `encoder`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ddcap.recipe.section import Section
from ddcap.recipe.strictness import STRICT


@dataclass(frozen=True, config=STRICT)
class EncoderSettings(Section):
    """The image encoder: pixels to memory and summary."""

    kind: Literal["efficientnet_lite", "clip"] = "efficientnet_lite"
    name: str = Field(default="lite2", description="EfficientNet-Lite variant, or a CLIP folder or Hub id")
    revision: str | None = Field(
        default=None,
        description="of a CLIP from the Hub: branch, tag or commit; a commit pins it, null takes the newest",
    )
    image_size: int = Field(
        default=288, ge=32, le=4096, description="side of the square the picture is brought to"
    )
    concepts: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="concepts of a picture that stand in the memory beside its positions; 0: none",
    )
    tagger: str | None = Field(
        default=None, description="folder of `ddcap tagger`: what sees the concepts, for a new model"
    )
    fit: Literal["squash", "crop"] = Field(
        default="squash", description="squash: both sides to image_size; crop: short side, then centre crop"
    )
    trainable: bool = False
    stored: bool = Field(
        default=False, description="set by a training: the weights differ from the published ones"
    )

    def __post_init__(self) -> None:
        """Check what single fields cannot."""
        if self.revision is not None and self.kind != "clip":
            raise ValueError(
                f"encoder.revision={self.revision}: only a CLIP is from the Hub; take it out, or set "
                "encoder.kind=clip"
            )

    @property
    def travels(self) -> bool:
        """Whether the encoder's weights are kept in the model's own file."""
        return self.trainable or self.stored
