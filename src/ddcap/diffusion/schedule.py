"""Probabilities of the forward process: keep, replace, MASK; one step and cumulative.

For a token that is not MASK, one step t keeps it with `alpha_t + beta_t`, turns it into one given other token
with `beta_t`, and into MASK with `gamma_t`; MASK stays MASK. `alpha_t + K beta_t + gamma_t = 1` with K words.
The cumulative `abar_t, bbar_t, gbar_t` say the same about t steps at once (method section "Forward process").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddcap.errors import RecipeError
from ddcap.recipe import DiffusionSettings

_ROUNDING = 1e-12  # probability mass under this is what float64 leaves of 0


@dataclass(frozen=True)
class Schedule:
    """The forward process as six tables, float64, on the CPU.

    t counts from 0 (almost clean) to T - 1 (almost all MASK). The cumulative tables have one more entry at
    the end, for "t = -1": the clean caption (1, 0, 0). Indexing with -1 thus reads it.

    Attributes:
        vocabulary_size: K, words without MASK.
        replacement_states: how many states share the replacement mass; K, or K + 1 in the release.
        keep: (T,) alpha_t.
        replace: (T,) beta_t, for one given token.
        mask: (T,) gamma_t.
        cumulative_keep: (T + 1,) abar_t.
        cumulative_replace: (T + 1,) bbar_t, for one given token.
        cumulative_mask: (T + 1,) gbar_t.
    """

    vocabulary_size: int
    replacement_states: int
    keep: Tensor
    replace: Tensor
    mask: Tensor
    cumulative_keep: Tensor
    cumulative_replace: Tensor
    cumulative_mask: Tensor

    @property
    def steps(self) -> int:
        """T."""
        return len(self.keep)


def linear_schedule(
    settings: DiffusionSettings, vocabulary_size: int, *, count_mask_as_replacement: bool = False
) -> Schedule:
    """The paper's schedule: abar falls and gbar rises linearly in t, replacement takes what they leave.

    Args:
        settings: T and the four end points.
        vocabulary_size: K.
        count_mask_as_replacement: share the replacement mass among K + 1 states, as the authors' code does,
            so that the probabilities sum to a little under 1; False shares it among the K words.

    Raises:
        RecipeError: if the end points give a negative one-step probability.
    """
    states = vocabulary_size + 1 if count_mask_as_replacement else vocabulary_size
    keep_line = _line(settings.keep_start, settings.keep_end, settings.steps)
    mask_line = _line(settings.mask_start, settings.mask_end, settings.steps)
    clean_keep, clean_mask = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    from_clean_keep = torch.cat([clean_keep, keep_line])  # t = -1, 0, ..., T - 1
    from_clean_mask = torch.cat([clean_mask, mask_line])
    # one step from the cumulative values: abar_t = abar_{t-1} alpha_t, and
    # 1 - gbar_t = (1 - gbar_{t-1}) (1 - gamma_t)
    keep = from_clean_keep[1:] / from_clean_keep[:-1]
    mask = 1 - (1 - from_clean_mask[1:]) / (1 - from_clean_mask[:-1])
    replace = 1 - keep - mask
    if bool((replace < -1e-9).any()) or bool((mask < -1e-9).any()):
        raise RecipeError(
            "diffusion: these end points make a one-step probability negative; let the cumulative keep "
            "probability fall, and the MASK probability rise, from start to end"
        )
    cumulative_keep = torch.cat([keep_line, clean_keep])
    cumulative_mask = torch.cat([mask_line, clean_mask])
    return Schedule(
        vocabulary_size=vocabulary_size,
        replacement_states=states,
        keep=keep,
        replace=_without_rounding(replace) / states,
        mask=mask,
        cumulative_keep=cumulative_keep,
        cumulative_replace=_without_rounding(1 - cumulative_keep - cumulative_mask) / states,
        cumulative_mask=cumulative_mask,
    )


def between(schedule: Schedule, earlier: Tensor, later: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keep, replace (one given token) and MASK probability of going from one step to a later one at once.

    Args:
        schedule: the process.
        earlier: (B,) steps from -1 (clean) to `later` - 1.
        later: (B,) steps up to T - 1.

    Returns:
        Three (B,) tensors, float64; for `earlier` = `later` - 1 alpha, beta and gamma of step `later`.
    """
    keep = schedule.cumulative_keep[later] / schedule.cumulative_keep[earlier]
    mask = 1 - (1 - schedule.cumulative_mask[later]) / (1 - schedule.cumulative_mask[earlier])
    replace = _without_rounding(1 - keep - mask) / schedule.replacement_states
    return keep, replace, mask


def _line(start: float, end: float, steps: int) -> Tensor:
    """(T,) from `start` to `end`; a single step is the last one, since there decoding begins."""
    if steps == 1:
        return torch.tensor([end], dtype=torch.float64)
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _without_rounding(mass: Tensor) -> Tensor:
    """Replacement mass with what rounding left of 0, on either side, set to 0.

    1e-17 would be an error of substance: the reverse step divides by it where a word seems replaced.
    """
    return torch.where(mass < _ROUNDING, 0.0, mass)
