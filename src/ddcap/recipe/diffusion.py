"""The section `diffusion`."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from ddcap.recipe.section import Section
from ddcap.recipe.strictness import STRICT


@dataclass(frozen=True, config=STRICT)
class DiffusionSettings(Section):
    """The forward process: mask-and-replace with linear cumulative probabilities."""

    steps: int = Field(default=20, ge=1, le=100_000, description="T")
    keep_start: float = Field(default=0.99999, gt=0, le=1, description="cumulative keep probability at t = 0")
    keep_end: float = Field(default=0.000009, gt=0, le=1, description="the same at t = T - 1")
    mask_start: float = Field(default=0.000009, ge=0, lt=1, description="cumulative MASK probability, t = 0")
    mask_end: float = Field(
        default=0.99999, gt=0, le=1, description="the same at t = T - 1; 0.9 leaves 0.1 for replacement"
    )

    def __post_init__(self) -> None:
        """Check what single fields cannot."""
        for end in ("start", "end"):
            total = getattr(self, f"keep_{end}") + getattr(self, f"mask_{end}")
            if total > 1:
                raise ValueError(
                    f"diffusion.keep_{end} + diffusion.mask_{end} = {total:g} is over 1; lower one, "
                    "since replacement takes what they leave"
                )
