"""Best-first inference (special design 3): each step commits the most certain tokens for good.

Shapes: B captions, L positions, n of them still MASK, S steps, V words (the id V is MASK).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ddcap.arrays import Array, array_namespace, device, like, log_sum_exp, to_host
from ddcap.decoding.constrained import commit_surest
from ddcap.decoding.constraints import ConstrainedCaption
from ddcap.decoding.guidance import Predictor, choose_tokens
from ddcap.decoding.trace import DecodingResult


@dataclass(frozen=True)
class BestFirstPlan:
    """When how many positions are committed; known before the first step.

    Attributes:
        timesteps: (S, B) t of each step.
        quotas: (S, B) positions to commit in each step; every column sums to the caption's MASK positions.
        lengths: (B,) tokens of each caption.
        diffusion_steps: T.
    """

    timesteps: np.ndarray
    quotas: np.ndarray
    lengths: np.ndarray
    diffusion_steps: int

    @property
    def blanks(self) -> np.ndarray:
        """(B,) MASK positions of each caption at the start."""
        return np.asarray(self.quotas.sum(axis=0))

    def at(self, step: int, blanks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) t and quota of a step, where each caption still has `blanks` (B,) MASK positions.

        A caption that is as far as planned follows the plan. One that is behind runs at the t of what it has
        left, and makes up for it; after the last planned step it is to commit all.
        """
        planned, after = self.quotas[step:].sum(axis=0), self.quotas[step + 1 :].sum(axis=0)
        timesteps = share_left(blanks, self.lengths, self.diffusion_steps)
        if step < len(self.quotas):
            timesteps = np.where(blanks > planned, timesteps, self.timesteps[step])
        return timesteps, blanks - after


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
        timesteps = share_left(blanks - done_before, lengths, diffusion_steps)
    return BestFirstPlan(timesteps, done_after - done_before, lengths, diffusion_steps)


def share_left(blanks: np.ndarray, lengths: np.ndarray, diffusion_steps: int) -> np.ndarray:
    """The t at which a caption of `lengths` tokens has `blanks` MASK positions left."""
    return (blanks * diffusion_steps // lengths).clip(max=diffusion_steps - 1)


def most_certain(is_mask: Array, confidences: Array, quota: Array) -> Array:
    """(B, L) True at the `quota` (B,) surest MASK positions of each caption; of equals, the first."""
    xp = array_namespace(confidences)
    order = xp.argsort(xp.where(is_mask, confidences, -1.0), axis=1, descending=True, stable=True)
    rank = xp.argsort(order, axis=1)  # sorting twice gives ranks without a loop over the batch
    return is_mask & (rank < quota[:, None])


def first_of_each(committed: Array, words: Array, confidences: Array) -> Array:
    """`committed` (B, L) without positions whose word is that of a surer one; of equals, the first stays.

    Positions are predicted independently of each other, so that two of them may want the same noun. The next
    step sees that it is there, and chooses another word for the second one.
    """
    xp = array_namespace(words)
    place = xp.arange(words.shape[1], device=device(words))
    one, other = confidences[:, :, None], confidences[:, None, :]  # (B, L, 1), (B, 1, L)
    is_surer = (other > one) | ((other == one) & (place < place[:, None]))
    is_same = (words[:, :, None] == words[:, None, :]) & committed[:, None, :]
    return committed & ~xp.any(is_same & is_surer, axis=2)


def margin(logits: Array) -> Array:
    """(..., V) logits to the probability of the likeliest token minus that of the second likeliest."""
    xp = array_namespace(logits)
    first = xp.argmax(logits, axis=-1)[..., None]
    is_first = xp.arange(logits.shape[-1], device=device(logits)) == first
    two = [xp.max(logits, axis=-1), xp.max(xp.where(is_first, -np.inf, logits), axis=-1)]
    total = log_sum_exp(logits)
    return xp.exp(two[0] - total) - xp.exp(two[1] - total)


def decode_best_first(
    predictor: Predictor,
    tokens: Array,
    lengths: Array,
    plan: BestFirstPlan,
    mask_id: int,
    temperature: float = 0.0,
    generator: np.random.Generator | None = None,
    captions_per_image: int = 1,
    distinct: bool = False,
    constrained: Sequence[ConstrainedCaption] | None = None,
    order: Literal["probability", "margin"] = "probability",
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
        distinct: a step commits no word twice in a caption, see `first_of_each`; a caption may take more
            steps than planned. Not in the paper.
        constrained: the same B captions where only some tokens are allowed; they are written to. Their order
            is always that of the probability.
        order: "probability" commits the likeliest tokens. "margin" commits those furthest ahead of the second
            likeliest (Kim et al. 2025), `margin` in place of the probability; not in the paper.
    """
    xp, on = array_namespace(tokens), device(tokens)
    history, step_confidences = [tokens], []
    told: list[np.ndarray] = []  # the t of each step
    confidences = xp.ones(tuple(tokens.shape), dtype=xp.float32, device=on)
    blanks, part = plan.blanks, predictor
    rows, places = np.arange(len(blanks)), like(np.arange(len(blanks)), tokens)
    while len(told) < len(plan.quotas) or blanks.any():
        timesteps, quotas = plan.at(len(told), blanks)
        kept = running_captions(blanks > 0, captions_per_image)
        if len(kept) < len(rows):
            rows, places = kept, like(kept, tokens)
            part = predictor.select(places)
        longest = int(plan.lengths[rows].max())
        now = tokens[places, :longest]  # (B', L')
        is_mask = now == mask_id
        # MASK positions first, as many as the caption with most of them has: no look at the tokens is needed
        asked = xp.argsort(xp.astype(is_mask, xp.int8), axis=1, descending=True, stable=True)
        asked = asked[:, : max(1, int(blanks[rows].max()))]  # (B', n)
        timestep = like(timesteps[rows], tokens)
        certainty = xp.zeros(tuple(now.shape), dtype=xp.float32, device=on)
        words = xp.zeros_like(now)
        row = xp.arange(now.shape[0], device=on)[:, None]
        if constrained is None:
            score = certainty
            if order == "margin":
                logits = part.logits(now, timestep, asked)
                chosen, log_probability = choose_tokens(logits, temperature, generator)
                score = xp.zeros_like(certainty)
                score[row, asked] = margin(logits)
            else:
                chosen, log_probability = part.choose(now, timestep, asked, temperature, generator)
            certainty[row, asked] = xp.exp(log_probability)
            words[row, asked] = chosen
            committed = most_certain(is_mask, score, like(quotas[rows], tokens))
            if distinct:
                committed = first_of_each(committed, words, score)
        else:
            found = commit_surest(
                [constrained[number] for number in rows.tolist()],
                part.logits(now, timestep, asked),
                asked,
                quotas[rows],
                temperature=temperature,
                generator=generator,
                distinct=distinct,
            )
            chosen, sure, is_committed = (like(part_of, tokens) for part_of in found)
            certainty[row, asked], words[row, asked] = sure, chosen
            committed = xp.zeros_like(is_mask)
            committed[row, asked] = is_committed
        if distinct:
            quotas[rows] = to_host(xp.sum(xp.astype(committed, xp.int64), axis=1))
        blanks = blanks - quotas
        tokens, confidences = xp.asarray(tokens, copy=True), xp.asarray(confidences, copy=True)
        tokens[places, :longest] = xp.where(committed, words, now)
        confidences[places, :longest] = xp.where(committed, certainty, confidences[places, :longest])
        everywhere = xp.zeros_like(confidences)
        everywhere[places, :longest] = certainty
        history.append(tokens)
        step_confidences.append(everywhere)
        told.append(timesteps)
    return DecodingResult.of_steps(
        lengths, confidences, history, step_confidences, like(np.stack(told), tokens)
    )


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
