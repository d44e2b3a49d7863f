"""AdamW parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch

from ddcap.model.stored_model import StoredModel
from ddcap.recipe import TrainingSettings


def build_optimizer(model: StoredModel, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over everything that trains; no weight decay on 1-d parameters, the encoder at its own rate.

    Every group carries `rate`, the factor its learning rate has to `learning_rate_at`.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = settings.encoder_rate if name.startswith("encoder.") else 1.0
        decay = 0.0 if parameter.ndim < 2 else settings.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "rate": rate, "weight_decay": decay, "lr": settings.learning_rate * rate}
            for (rate, decay), parameters in groups.items()
        ],
        betas=settings.betas,
        fused=True,
    )


def learning_rate_at(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warm-up to `peak`, then a cosine to 0.

    Args:
        step: from 0; step 0 already learns.
        total_steps: length of the training.
        warmup_steps: length of the warm-up.
        peak: highest rate.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group `learning_rate` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate"]
