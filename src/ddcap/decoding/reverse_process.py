"""From MASK to words: best-first inference (special design 3), and the ancestral sampler of row a of Table 1.

Shapes: B captions, L positions, S steps, V words (the id V is MASK).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ddcap.decoding.guidance import Predictor
from ddcap.decoding.trace import DecodingResult
from ddcap.diffusion import Schedule, posterior

# Special design 3, best-first inference: each step commits the most certain tokens for good.


@dataclass(frozen=True)
class BestFirstPlan:
    """When how many positions are committed.

    Attributes:
        timesteps: (S, B) t of each step.
        quotas: (S, B) positions to commit in each step; every column sums to the caption's MASK positions.
    """

    timesteps: Tensor
    quotas: Tensor


@dataclass(frozen=True)
class BestFirstStep:
    """What one step did.

    Attributes:
        tokens: (B, L) after the step.
        confidences: (B, L) probability of the token chosen at each position.
        committed: (B, L) True where a MASK became a word.
    """

    tokens: Tensor
    confidences: Tensor
    committed: Tensor


def plan_steps(
    blanks: Tensor,
    lengths: Tensor,
    diffusion_steps: int,
    steps: int | None = None,
    schedule: Literal["per_caption", "released"] = "per_caption",
) -> BestFirstPlan:
    """How many positions each step commits, and the t it runs at.

    A caption with n MASK positions takes S = `steps` steps, at most n (without `steps`: one position a step,
    but at most T steps). Step i commits floor(n (i+1) / S) - floor(n i / S) positions. Its t says which
    share of the caption is still MASK: floor(remaining * T / length), at most T - 1; with one position a step
    this is the release's floor((n - i) T / n).

    "per_caption" plans every caption by itself, so a caption does not depend on its batch. "released" does
    what the authors' code does: if the longest caption of the batch is over T, all take T steps, whatever
    `steps` says, step i at t = T - 1 - i.

    Args:
        blanks: (B,) MASK positions of each caption.
        lengths: (B,) tokens of each caption.
        diffusion_steps: T.
        steps: asked-for number of steps; None as above.
        schedule: see above.
    """
    whole_batch = schedule == "released" and int(lengths.max()) > diffusion_steps
    if whole_batch:
        per_caption = torch.full_like(blanks, diffusion_steps)
    else:
        per_caption = blanks.clamp(min=1, max=steps if steps is not None else diffusion_steps)
    total = int(per_caption.max())
    index = torch.arange(total, device=blanks.device).unsqueeze(1)  # (S, 1)
    done_before = blanks * index.clamp(max=per_caption) // per_caption  # (S, B)
    done_after = blanks * (index + 1).clamp(max=per_caption) // per_caption
    if whole_batch:
        timesteps = (diffusion_steps - 1 - index).expand(total, len(blanks))
    else:
        remaining = blanks - done_before
        timesteps = (remaining * diffusion_steps // lengths).clamp(max=diffusion_steps - 1)
    return BestFirstPlan(timesteps=timesteps, quotas=done_after - done_before)


def best_first_step(
    tokens: Tensor,
    log_probabilities: Tensor,
    quota: Tensor,
    mask_id: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> BestFirstStep:
    """Commit the `quota` most confident MASK positions of each caption; a pure function.

    Args:
        tokens: (B, L) current tokens.
        log_probabilities: (B, L, V) log p(x_0 | x_t).
        quota: (B,) positions to commit.
        mask_id: V.
        temperature: 0 chooses the likeliest token; above, tokens are drawn from p^(1/temperature).
        generator: source of randomness, read only if the temperature is not 0.
    """
    chosen = choose_tokens(log_probabilities, temperature, generator)  # (B, L)
    confidences = log_probabilities.gather(2, chosen.unsqueeze(2)).squeeze(2).exp()
    is_mask = tokens == mask_id
    # rank of every position by confidence: sorting twice gives ranks without a loop over the batch
    order = confidences.masked_fill(~is_mask, -1.0).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    committed = is_mask & (rank < quota.unsqueeze(1))
    return BestFirstStep(torch.where(committed, chosen, tokens), confidences, committed)


def choose_tokens(log_probabilities: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """(B, L, V) to (B, L): the likeliest token, or a draw from p^(1/temperature) by the Gumbel-max trick."""
    if temperature == 0:
        return log_probabilities.argmax(dim=2)
    uniform = torch.rand(log_probabilities.shape, generator=generator, device=log_probabilities.device)
    exponential = -torch.log(uniform.clamp(min=1e-20, max=1 - 1e-7))  # over 0: its logarithm is finite
    return (log_probabilities / temperature - exponential.log()).argmax(dim=2)


def decode_best_first(
    predict: Predictor,
    tokens: Tensor,
    lengths: Tensor,
    plan: BestFirstPlan,
    mask_id: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> DecodingResult:
    """Run a plan: predict, commit, repeat.

    Args:
        predict: see `guidance.build_predictor`.
        tokens: (B, L) MASK where words are wanted; given words stay; padding is any word.
        lengths: (B,).
        plan: of `plan_steps`.
        mask_id: V.
        temperature: see `best_first_step`.
        generator: see `best_first_step`.
    """
    history, step_confidences = [tokens], []
    confidences = torch.ones(tokens.shape, device=tokens.device)
    for timestep, quota in zip(plan.timesteps, plan.quotas, strict=True):
        step = best_first_step(tokens, predict(tokens, timestep), quota, mask_id, temperature, generator)
        confidences = torch.where(step.committed, step.confidences, confidences)
        tokens = step.tokens
        history.append(tokens)
        step_confidences.append(step.confidences)
    return DecodingResult(
        tokens=tokens,
        lengths=lengths,
        confidences=confidences,
        history=torch.stack(history),
        step_confidences=torch.stack(step_confidences),
        timesteps=plan.timesteps,
    )


# The normal reverse process: sample x_{t-1} from p(x_{t-1} | x_t) until t = 0 (row a of Table 1).


def decode_ancestral(
    predict: Predictor,
    tokens: Tensor,
    lengths: Tensor,
    schedule: Schedule,
    steps: int | None = None,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> DecodingResult:
    """Sample a caption by the reverse process, from all MASK.

    Args:
        predict: see `guidance.build_predictor`.
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
        chosen = choose_tokens(log_probabilities, temperature, generator)
        # how sure the model is of a word is p(x_0 | x_t); p(x_s | x_t) would mostly say how far t moved
        word = chosen.clamp(max=mask_id - 1).unsqueeze(2)
        chosen_probability = log_p_x0.gather(2, word).squeeze(2).exp()
        after = torch.where(wanted, chosen, tokens)
        confidences = torch.where(after != tokens, chosen_probability, confidences)
        tokens = after
        history.append(tokens)
        step_confidences.append(chosen_probability)
        timesteps.append(timestep)
    return DecodingResult(
        tokens=tokens,
        lengths=lengths,
        confidences=confidences,
        history=torch.stack(history),
        step_confidences=torch.stack(step_confidences),
        timesteps=torch.stack(timesteps),
    )
