"""Best-first inference (special design 3): each step commits the most certain tokens for good.

Shapes: B captions, L positions, n of them still MASK, S steps, V words (the id V is MASK).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ddcap.arrays import Array, array_namespace, device, like, to_host
from ddcap.decoding.guidance import Predictor
from ddcap.decoding.trace import DecodingResult


@dataclass(frozen=True)
class BestFirstPlan:
    """When how many positions are committed; known before the first step.

    Attributes:
        timesteps: (S, B) t of each step.
        quotas: (S, B) positions to commit in each step; every column sums to the caption's MASK positions.
    """

    timesteps: np.ndarray
    quotas: np.ndarray


def plan_steps(
    blanks: Array,
    lengths: Array,
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
    blanks, lengths = to_host(blanks), to_host(lengths)
    whole_batch = schedule == "released" and int(lengths.max()) > diffusion_steps
    if whole_batch:
        per_caption = np.full_like(blanks, diffusion_steps)
    else:
        per_caption = blanks.clip(1, steps if steps is not None else diffusion_steps)
    total = int(per_caption.max())
    index = np.arange(total)[:, None]  # (S, 1)
    done_before = blanks * np.minimum(index, per_caption) // per_caption  # (S, B)
    done_after = blanks * np.minimum(index + 1, per_caption) // per_caption
    if whole_batch:
        timesteps = np.broadcast_to(diffusion_steps - 1 - index, (total, len(blanks)))
    else:
        timesteps = ((blanks - done_before) * diffusion_steps // lengths).clip(max=diffusion_steps - 1)
    return BestFirstPlan(timesteps=timesteps, quotas=done_after - done_before)


def most_certain(is_mask: Array, confidences: Array, quota: Array) -> Array:
    """(B, L) True at the `quota` (B,) surest MASK positions of each caption; of equals, the first."""
    xp = array_namespace(confidences)
    order = xp.argsort(xp.where(is_mask, confidences, -1.0), axis=1, descending=True, stable=True)
    rank = xp.argsort(order, axis=1)  # sorting twice gives ranks without a loop over the batch
    return is_mask & (rank < quota[:, None])


def decode_best_first(
    predictor: Predictor,
    tokens: Array,
    lengths: Array,
    plan: BestFirstPlan,
    mask_id: int,
    temperature: float = 0.0,
    generator: np.random.Generator | None = None,
    captions_per_image: int = 1,
) -> DecodingResult:
    """Run a plan: predict, commit, repeat.

    Nothing is computed that cannot change a caption: words are predicted at MASK positions only, and
    captions that are done are left out, as far as every image has as many of them left.

    Args:
        predictor: for these captions.
        tokens: (B, L) MASK where words are wanted; given words stay; padding is any word.
        lengths: (B,).
        plan: of `plan_steps`.
        mask_id: V.
        temperature: 0 chooses the likeliest token; above, tokens are drawn from p^(1/temperature).
        generator: source of randomness, read only if the temperature is not 0.
        captions_per_image: B is a multiple of it.
    """
    xp, on = array_namespace(tokens), device(tokens)
    history, step_confidences = [tokens], []
    confidences = xp.ones(tuple(tokens.shape), dtype=xp.float32, device=on)
    left = np.cumsum(plan.quotas[::-1], axis=0)[::-1]  # (S, B) MASK positions before each step
    sizes, part = to_host(lengths), predictor
    rows, places = np.arange(len(sizes)), like(np.arange(len(sizes)), tokens)
    for timesteps, quotas, blanks in zip(plan.timesteps, plan.quotas, left, strict=True):
        kept = running_captions(blanks > 0, captions_per_image)
        if len(kept) < len(rows):
            rows, places = kept, like(kept, tokens)
            part = predictor.select(places)
        longest = int(sizes[rows].max())
        now = tokens[places, :longest]  # (B', L')
        is_mask = now == mask_id
        # MASK positions first, as many as the caption with most of them has: no look at the tokens is needed
        asked = xp.argsort(xp.astype(is_mask, xp.int8), axis=1, descending=True, stable=True)
        asked = asked[:, : max(1, int(blanks[rows].max()))]  # (B', n)
        timestep = like(timesteps[rows], tokens)
        chosen, log_probability = part.choose(now, timestep, asked, temperature, generator)
        certainty = xp.zeros(tuple(now.shape), dtype=xp.float32, device=on)
        words = xp.zeros_like(now)
        row = xp.arange(now.shape[0], device=on)[:, None]
        certainty[row, asked] = xp.exp(log_probability)
        words[row, asked] = chosen
        committed = most_certain(is_mask, certainty, like(quotas[rows], tokens))
        tokens, confidences = xp.asarray(tokens, copy=True), xp.asarray(confidences, copy=True)
        tokens[places, :longest] = xp.where(committed, words, now)
        confidences[places, :longest] = xp.where(committed, certainty, confidences[places, :longest])
        everywhere = xp.zeros_like(confidences)
        everywhere[places, :longest] = certainty
        history.append(tokens)
        step_confidences.append(everywhere)
    timesteps = like(plan.timesteps, tokens)
    return DecodingResult.of_steps(lengths, confidences, history, step_confidences, timesteps)


def running_captions(is_running: np.ndarray, captions_per_image: int) -> np.ndarray:
    """(B',) captions to go on with: those that are running, and as many of each image as of the others.

    Args:
        is_running: (B,) grouped by image.
        captions_per_image: B is a multiple of it.
    """
    running = is_running.reshape(-1, captions_per_image)
    most = max(1, int(running.sum(axis=1).max()))
    kept = np.sort(np.argsort(~running, axis=1, kind="stable")[:, :most], axis=1)  # (I, K')
    return (kept + np.arange(len(running))[:, None] * captions_per_image).reshape(-1)
