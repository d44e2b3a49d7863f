"""The section `training`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ddcap.recipe.section import Section
from ddcap.recipe.strictness import STRICT

_Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class TrainingSettings(Section):
    """Optimisation, regularisation, checkpoints and logs."""

    output: str = Field(default="runs/ddcap", description="folder for checkpoints, logs and the model")
    epochs: float = Field(default=30, gt=0)
    warmup_epochs: float = Field(default=5, ge=0)
    batch_size: int = Field(default=512, ge=1, description="captions per optimiser step, over all processes")
    gradient_accumulation: int = Field(default=1, ge=1, description="parts a batch is computed in")
    learning_rate: float = Field(default=2e-4, gt=0)
    encoder_rate: float = Field(default=1.0, ge=0, description="factor on the rate of a trainable encoder")
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[_Share, _Share] = (0.9, 0.999)
    gradient_clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 switches it off")
    image_free_probability: float = Field(default=0.2, ge=0, le=1, description="p; 0: no special design 4")
    length_loss_weight: float = Field(default=1.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    ema_decay: float = Field(default=0.0, ge=0, lt=1, description="0 switches the moving average off")
    gradient_checkpointing: bool = Field(
        default=False, description="spare memory: blocks are computed again for their gradient"
    )
    fsdp: bool = Field(
        default=False,
        description="spread weights, gradients and optimizer over the processes (FSDP2), for large encoders",
    )
    compile: bool = Field(
        default=False, description="compile the blocks; takes a minute first, and a C++ compiler on a CPU"
    )
    mixed_precision: Literal["no", "bf16"] = "no"
    seed: int = 0
    log_every: int = Field(default=20, ge=1, description="optimiser steps between two log lines")
    checkpoint_every: int = Field(default=500, ge=1, description="optimiser steps between two checkpoints")
    keep_checkpoints: int = Field(
        default=2, ge=2, description="newest ones; two, so that one stays if the other is damaged"
    )
    validate_every: float = Field(default=1, gt=0, description="epochs between two validations")
    validate_images: int = Field(default=500, ge=1, description="validation pictures per validation")
    sample_captions: int = Field(default=4, ge=0, description="validation captions written to the log")

    @property
    def bf16(self) -> bool:
        """Whether forward passes run in mixed precision, those that fill the feature cache included."""
        return self.mixed_precision == "bf16"
