"""The normal reverse process (row a of Table 1): sample x_{t-1} from p(x_{t-1} | x_t) until t = 0.

Shapes: B captions, L positions, V words (the id V is MASK).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ddcap.decoding.guidance import choose_tokens
from ddcap.decoding.trace import DecodingResult
from ddcap.diffusion import Schedule, posterior


def decode_ancestral(
    predict: Callable[[Tensor, Tensor], Tensor],
    tokens: Tensor,
    lengths: Tensor,
    schedule: Schedule,
    steps: int | None = None,
    temperature: float = 1.0,
    generator: np.random.Generator | None = None,
) -> DecodingResult:
    """Sample a caption by the reverse process, from all MASK.

    Args:
        predict: tokens (B, L) and timestep (B,) to log p(x_0 | x_t, y) (B, L, V).
        tokens: (B, L) MASK where words are wanted; given words and padding are kept.
        lengths: (B,).
        schedule: the forward process.
        steps: reverse steps, evenly spread over t; None takes all T.
        temperature: 1 samples the reverse process as it is; 0 takes the likeliest state everywhere.
        generator: source of randomness.
    """
    mask_id = schedule.vocabulary_size
    count = min(steps or schedule.steps, schedule.steps)
    grid = torch.linspace(schedule.steps - 1, -1, count + 1).round().long().tolist()  # T-1, ..., -1
    batch = tokens.shape[0]
    wanted = tokens == mask_id
    history, step_confidences, timesteps = [tokens], [], []
    confidences = torch.ones(tokens.shape, device=tokens.device)
    for now, earlier in itertools.pairwise(grid):
        timestep = torch.full((batch,), now, device=tokens.device)
        log_p_x0 = predict(tokens, timestep)  # (B, L, V)
        probabilities = posterior(
            log_p_x0, tokens, timestep, torch.full_like(timestep, earlier), schedule
        )  # (B, L, V + 1)
        log_probabilities = probabilities.clamp(min=1e-30).log()
        if earlier == -1:
            log_probabilities[..., mask_id] = -torch.inf  # 1e-30 is not 0: nothing is MASK at the end
        chosen, _ = choose_tokens(log_probabilities, temperature, generator)
        # how sure the model is of a word is p(x_0 | x_t); p(x_s | x_t) would mostly say how far t moved
        word = chosen.clamp(max=mask_id - 1).unsqueeze(2)
        chosen_probability = log_p_x0.gather(2, word).squeeze(2).exp()
        after = torch.where(wanted, chosen, tokens)
        confidences = torch.where(after != tokens, chosen_probability, confidences)
        tokens = after
        history.append(tokens)
        step_confidences.append(chosen_probability)
        timesteps.append(timestep)
    return DecodingResult.of_steps(lengths, confidences, history, step_confidences, torch.stack(timesteps))
