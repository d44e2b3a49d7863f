"""Noising and its exact reverse for the mask-and-replace process.

Shapes: B batch, L caption positions, V words (MASK has the id V and comes last where states are listed).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddcap.diffusion.schedule import Schedule, between


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
    fate = torch.rand(tokens.shape, generator=generator, device=tokens.device)
    words = torch.randint(schedule.vocabulary_size, tokens.shape, generator=generator, device=tokens.device)
    return noise_tokens(tokens, timestep, schedule, fate, words)


def noise_tokens(tokens: Tensor, timestep: Tensor, schedule: Schedule, fate: Tensor, words: Tensor) -> Tensor:
    """x_t given x_0 and the two random numbers of every token.

    Args:
        tokens: (B, L) x_0, words only.
        timestep: (B,) t in 0..T-1.
        schedule: the forward process.
        fate: (B, L) uniform in [0, 1): whether the token becomes MASK, is replaced or stays.
        words: (B, L) uniform among the V words: what it is replaced by.

    Returns:
        (B, L) x_t; the id V is MASK.
    """
    vocabulary_size = schedule.vocabulary_size
    mask, replace = (
        table.to(tokens.device, torch.float32)[timestep].unsqueeze(1)  # (B, 1)
        for table in (schedule.cumulative_mask, schedule.cumulative_replace * vocabulary_size)
    )
    noised = torch.where(fate < mask + replace, words, tokens)
    return torch.where(fate < mask, vocabulary_size, noised)


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
