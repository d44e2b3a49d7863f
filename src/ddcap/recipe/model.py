"""The section `model`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ddcap.recipe.section import Section
from ddcap.recipe.strictness import STRICT


@dataclass(frozen=True, config=STRICT)
class ModelSettings(Section):
    """The denoiser and the heads around it."""

    kind: Literal["diffusion", "autoregressive"] = Field(
        default="diffusion", description="autoregressive: the paper's controlled comparison, a causal twin"
    )
    init: str | None = Field(
        default=None, description="start from this trained model: 'default', a folder or a Hub id"
    )
    width: int = Field(default=768, ge=2)
    layers: int = Field(default=12, ge=1)
    heads: int = Field(default=12, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    max_length: int = Field(default=20, ge=1, description="longest caption in tokens, end token included")
    positions: int | None = Field(default=None, description="rows of the position table; else max_length")
    projection_hidden: int = Field(default=384, ge=1, description="hidden width of the image projection MLP")
    length_hidden: int = Field(default=384, ge=1, description="hidden width of the length head")
    length_prediction: bool = Field(default=True, description="special design 1")
    concentrated_attention: bool = Field(default=True, description="special design 2")
    length_difference: bool = Field(
        default=False,
        description="every position also knows how many tokens follow it, which special design 2 hides",
    )

    @property
    def is_open(self) -> bool:
        """Whether settings that were not given are still to be taken over from the model of `init`."""
        return self.init is not None and len(self.given) < len(dataclasses.fields(self))

    def __post_init__(self) -> None:
        """Check what single fields cannot."""
        if self.init is not None:
            return  # what is given has to be as in that model, which was checked when it was made
        if self.width % self.heads:
            raise ValueError(f"model.width={self.width}: no multiple of model.heads={self.heads}; change one")
        if self.kind == "autoregressive":
            for name in ("length_prediction", "concentrated_attention", "length_difference"):
                if getattr(self, name):
                    raise ValueError(f"an autoregressive model knows no length; set model.{name}=false")
        if self.width % 2:
            raise ValueError(f"model.width={self.width} is odd; the timestep embedding needs an even width")
        if self.positions is not None and self.positions < self.max_length:
            raise ValueError(
                f"model.positions={self.positions} is under model.max_length={self.max_length}; raise it"
            )
