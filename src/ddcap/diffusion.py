"""The forward process and its exact reverse: keep, replace, MASK; one step and cumulative.

For a token that is not MASK, one step t keeps it with `alpha_t + beta_t`, turns it into one given other token
with `beta_t`, and into MASK with `gamma_t`; MASK stays MASK. `alpha_t + K beta_t + gamma_t = 1` with K words.
The cumulative `abar_t, bbar_t, gbar_t` say the same about t steps at once (method section "Forward process").

Shapes: B batch, L caption positions, V words (MASK has the id V and comes last where states are listed).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddcap.errors import RecipeError

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


class EndPoints(Protocol):
    """T, and what the cumulative probabilities are at the first step and at the last: `DiffusionSettings`."""

    @property
    def steps(self) -> int:
        """T."""

    @property
    def keep_start(self) -> float:
        """Cumulative probability to stay, at t = 0."""

    @property
    def keep_end(self) -> float:
        """The same at t = T - 1."""

    @property
    def mask_start(self) -> float:
        """Cumulative probability of MASK, at t = 0."""

    @property
    def mask_end(self) -> float:
        """The same at t = T - 1."""


def linear_schedule(
    settings: EndPoints, vocabulary_size: int, *, count_mask_as_replacement: bool = False
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
            "diffusion: these settings make a one-step probability negative; let the cumulative keep "
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


# Noising and its exact reverse for the mask-and-replace process.


def q_sample(
    tokens: Tensor, timestep: Tensor, schedule: Schedule, generator: torch.Generator | None = None
) -> Tensor:
    """Draw x_t given x_0 from two uniform numbers per token; nothing of size V is built.

    Args:
        tokens: (B, L) x_0, words only.
        timestep: (B,) t in 0..T-1.
        schedule: the forward process.
        generator: source of randomness, on the device of `tokens`.

    Returns:
        (B, L) x_t; the id V is MASK.
    """
    uniform = torch.rand(tokens.shape, generator=generator, device=tokens.device)
    replacement = torch.randint(
        schedule.vocabulary_size, tokens.shape, generator=generator, device=tokens.device
    )
    return noise_tokens(tokens, timestep, schedule, uniform, replacement)


def noise_tokens(
    tokens: Tensor, timestep: Tensor, schedule: Schedule, uniform: Tensor, replacement: Tensor
) -> Tensor:
    """Make x_t of x_0 and the two random numbers of every token.

    Args:
        tokens: (B, L) x_0, words only.
        timestep: (B,) t in 0..T-1.
        schedule: the forward process.
        uniform: (B, L) uniform in [0, 1): whether the token becomes MASK, is replaced or stays.
        replacement: (B, L) uniform among the V words: what it is replaced by.

    Returns:
        (B, L) x_t; the id V is MASK.
    """
    vocabulary_size = schedule.vocabulary_size
    mask, replace = (
        table.to(tokens.device, torch.float32)[timestep].unsqueeze(1)  # (B, 1)
        for table in (schedule.cumulative_mask, schedule.cumulative_replace * vocabulary_size)
    )
    noised = torch.where(uniform < mask + replace, replacement, tokens)
    return torch.where(uniform < mask, vocabulary_size, noised)


def marginal(tokens: Tensor, timestep: Tensor, schedule: Schedule) -> Tensor:
    """q(x_t | x_0) for every state of x_t.

    Args:
        tokens: (B, L) x_0, words only.
        timestep: (B,) t in -1..T-1.
        schedule: the forward process.

    Returns:
        (B, L, V + 1) probabilities, float32.
    """
    keep, replace, mask = _cumulative(schedule, timestep, tokens.device)
    vocabulary_size = schedule.vocabulary_size
    probabilities = replace.expand(*tokens.shape, vocabulary_size).clone()
    probabilities.scatter_add_(2, tokens.unsqueeze(2), keep.expand(*tokens.shape, 1))
    return torch.cat([probabilities, mask.expand(*tokens.shape, 1)], dim=2)


def posterior(
    log_p_x0: Tensor, noised_tokens: Tensor, timestep: Tensor, earlier: Tensor, schedule: Schedule
) -> Tensor:
    """p(x_s | x_t) = sum over x_0 of q(x_s | x_t, x_0) p(x_0 | x_t), in O(V) per position.

    With s = t - 1 this is the reverse step of the paper ("normal" inference). A clean token that could not
    have become x_t (replacement mass zero and x_t another word) has no q(x_s | x_t, x_0); its mass goes to
    x_t itself.

    Args:
        log_p_x0: (B, L, V) log p(x_0 | x_t), normalised.
        noised_tokens: (B, L) x_t; the id V is MASK.
        timestep: (B,) t in 0..T-1.
        earlier: (B,) s in -1..t-1.
        schedule: the forward process.

    Returns:
        (B, L, V + 1) probabilities of x_s, MASK last, float32.
    """
    device, vocabulary_size = log_p_x0.device, schedule.vocabulary_size
    step_keep, step_replace, step_mask = (
        value.to(device, torch.float32).view(-1, 1, 1)
        for value in between(schedule, earlier.cpu(), timestep.cpu())
    )
    keep_t, replace_t, mask_t = _cumulative(schedule, timestep, device)
    keep_s, replace_s, mask_s = _cumulative(schedule, earlier, device)
    p_x0 = log_p_x0.float().exp()

    # x_t is MASK: q(x_s | MASK, x_0) = q(MASK | x_s) q(x_s | x_0) / q(MASK | x_0)
    safe_mask_t = mask_t.clamp(min=torch.finfo(torch.float32).tiny)
    words_from_mask = step_mask / safe_mask_t * (keep_s * p_x0 + replace_s)
    mask_from_mask = (mask_s / safe_mask_t).expand(*noised_tokens.shape, 1)
    from_mask = torch.cat([words_from_mask, mask_from_mask], dim=2)

    # x_t is the word k: q(x_s | k, x_0) = q(k | x_s) q(x_s | x_0) / q(k | x_0), and x_s cannot be MASK
    word = noised_tokens.clamp(max=vocabulary_size - 1).unsqueeze(
        2
    )  # (B, L, 1); MASK rows are discarded below
    is_word_t = torch.zeros_like(p_x0).scatter_(2, word, 1.0)
    likelihood = keep_t * is_word_t + replace_t  # q(k | x_0)
    possible = likelihood > 0
    weight = torch.where(possible, p_x0 / likelihood.masked_fill(~possible, 1.0), 0.0)
    arrives = step_keep * is_word_t + step_replace  # q(k | x_s)
    from_word = arrives * (keep_s * weight + replace_s * weight.sum(dim=2, keepdim=True))
    impossible_mass = (p_x0 * ~possible).sum(dim=2, keepdim=True)
    from_word = from_word.scatter_add(2, word, impossible_mass)
    from_word = torch.cat([from_word, torch.zeros_like(mask_from_mask)], dim=2)

    is_mask = (noised_tokens == vocabulary_size).unsqueeze(2)
    return torch.where(is_mask, from_mask, from_word)


def _cumulative(schedule: Schedule, timestep: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """abar_t, bbar_t, gbar_t as (B, 1, 1) float32; t = -1 reads the clean caption at the tables' end."""
    index = timestep.cpu()
    keep, replace, mask = (
        table[index].to(device, torch.float32).view(-1, 1, 1)
        for table in (schedule.cumulative_keep, schedule.cumulative_replace, schedule.cumulative_mask)
    )
    return keep, replace, mask
