"""Best-first inference (special design 3): each step commits the most certain tokens for good.

Shapes: B captions, B' of them running, L positions, n of them asked for, S steps, V words (the id V is MASK).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ddcap.arrays import Array, array_namespace, device, like, log_sum_exp, to_host
from ddcap.decoding.predictor import choose_tokens
from ddcap.decoding.schedulers.allowed import commit_surest
from ddcap.decoding.schedulers.focus import Focus
from ddcap.decoding.schedulers.interface import AllowedTokens, ModelOutput, SchedulerOutput
from ddcap.decoding.schedulers.surest import drop_duplicates, top_k_confident


@dataclass(frozen=True)
class BestFirstPlan:
    """The number of positions that each step commits; known before the first step.

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

    def timestep(self, step: int, blanks: np.ndarray) -> np.ndarray:
        """(B,) t of a step, where each caption still has `blanks` (B,) MASK positions.

        A caption that is as far as planned follows the plan. One that is behind runs at the t of what it has
        left.
        """
        planned = self.quotas[step:].sum(axis=0)
        timesteps = timestep_for_mask_ratio(blanks, self.lengths, self.diffusion_steps)
        if step < len(self.quotas):
            timesteps = np.where(blanks > planned, timesteps, self.timesteps[step])
        return timesteps

    def quota(self, step: int, blanks: np.ndarray) -> np.ndarray:
        """(B,) positions to commit in a step. A caption that is behind makes up for it."""
        after: np.ndarray = self.quotas[step + 1 :].sum(axis=0)
        return blanks - after


def plan_steps(
    blanks: Array,
    lengths: Array,
    diffusion_steps: int,
    steps: int | None = None,
    schedule: Literal["per_caption", "released"] = "per_caption",
) -> BestFirstPlan:
    """Plan how many positions each step commits, and the t it runs at.

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
        timesteps = timestep_for_mask_ratio(blanks - done_before, lengths, diffusion_steps)
    return BestFirstPlan(timesteps, done_after - done_before, lengths, diffusion_steps)


def timestep_for_mask_ratio(blanks: np.ndarray, lengths: np.ndarray, diffusion_steps: int) -> np.ndarray:
    """The t at which a caption of `lengths` tokens has `blanks` MASK positions left."""
    return (blanks * diffusion_steps // lengths).clip(max=diffusion_steps - 1)


def margin(logits: Array) -> Array:
    """(..., V) logits to the probability of the likeliest token minus that of the second likeliest."""
    xp = array_namespace(logits)
    first = xp.argmax(logits, axis=-1)[..., None]
    is_first = xp.arange(logits.shape[-1], device=device(logits)) == first
    two = [xp.max(logits, axis=-1), xp.max(xp.where(is_first, -np.inf, logits), axis=-1)]
    total = log_sum_exp(logits)
    return xp.exp(two[0] - total) - xp.exp(two[1] - total)


def _first_columns(positions: np.ndarray) -> np.ndarray:
    """(B, n) in which column each of a caption's positions stands first."""
    is_same = positions[:, :, None] == positions[:, None, :]
    return np.asarray(is_same.argmax(axis=2))


class BestFirstScheduler:
    """Commit the surest tokens first, as many a step as `plan_steps` says.

    Args:
        diffusion_steps: T.
        mask_id: V.
        schedule: see `plan_steps`.
        temperature: 0 chooses the likeliest token; above, tokens are drawn from p^(1/temperature).
        distinct: a step commits no word twice in a caption, see `drop_duplicates`; a caption may take more
            steps than planned. Not in the paper.
        order: "probability" commits the likeliest tokens. "margin" commits those furthest ahead of the second
            likeliest (Kim et al. 2025), `margin` in place of the probability; not in the paper. Where only
            some tokens are allowed, the order is always that of the probability.
        focus: positions of a caption that a step looks at, besides those next to new words, see `Focus`; 0
            looks at all. Where only some tokens are allowed, a step needs all. Not in the paper.
    """

    plan: BestFirstPlan

    def __init__(
        self,
        diffusion_steps: int,
        mask_id: int,
        *,
        schedule: Literal["per_caption", "released"] = "per_caption",
        temperature: float = 0.0,
        distinct: bool = False,
        order: Literal["probability", "margin"] = "probability",
        focus: int = 0,
    ) -> None:
        self.diffusion_steps, self.mask_id, self.schedule = diffusion_steps, mask_id, schedule
        self.temperature, self.distinct, self.order = temperature, distinct, order
        self.focus = focus
        self.reads_logits = bool(temperature) or order == "margin"

    def set_timesteps(self, num_inference_steps: int | None, sample: Array, lengths: Array) -> None:
        """See `Scheduler`."""
        blanks = to_host(array_namespace(sample).sum(sample == self.mask_id, axis=1))
        plan = plan_steps(blanks, lengths, self.diffusion_steps, num_inference_steps, self.schedule)
        self._begin(plan, blanks, sample)

    def _begin(self, plan: BestFirstPlan, blanks: np.ndarray, sample: Array) -> None:
        """Begin anew with a plan for captions (B, L) of `blanks` (B,) MASK positions."""
        self.plan, self.timesteps = plan, plan.timesteps
        self.left, self._index = blanks, 0  # (B,) MASK positions of each caption; steps taken
        self._focus = Focus(self.focus, sample) if self.focus else None

    @property
    def is_done(self) -> bool:
        """See `Scheduler`."""
        return self._index >= len(self.plan.quotas) and not self.left.any()

    @property
    def running(self) -> np.ndarray:
        """(B,) True for captions with MASK positions."""
        is_running: np.ndarray = self.left > 0
        return is_running

    def timestep(self) -> np.ndarray:
        """(B,) t of the next step, see `BestFirstPlan.timestep`."""
        return self.plan.timestep(self._index, self.left)

    def positions(self, sample: Array, rows: np.ndarray) -> Array:
        """(B', n) open positions to look at, as many as the caption with most open ones has.

        A caption with fewer has its first one several times, so that none is computed in vain.
        """
        xp = array_namespace(sample)
        is_asked = self._open(sample, rows)
        if self._focus is not None:
            is_asked = self._focus.asked(is_asked, self._quotas()[rows], rows)
        # how many are open is known: no look at the tokens is needed, for which a GPU would wait
        order = xp.argsort(xp.astype(is_asked, xp.int8), axis=1, descending=True, stable=True)
        order = order[:, : max(1, int(self._open_counts()[rows].max()))]
        if self.temperature:  # two draws for one position would differ
            return order
        return xp.where(xp.take_along_axis(is_asked, order, axis=1), order, order[:, :1])

    def step(
        self,
        model_output: ModelOutput,
        timestep: np.ndarray,  # noqa: ARG002 (the plan has said which positions are committed at it)
        sample: Array,
        rows: np.ndarray,
        *,
        generator: np.random.Generator | None = None,
        allowed: Sequence[AllowedTokens] | None = None,
    ) -> SchedulerOutput:
        """See `Scheduler`."""
        xp, on, asked = array_namespace(sample), device(sample), model_output.positions
        quotas = self._quotas()
        is_open = self._open(sample, rows)
        row = xp.arange(sample.shape[0], device=on)[:, None]
        probability = xp.zeros(tuple(sample.shape), dtype=xp.float32, device=on)
        words = xp.zeros_like(sample)
        if allowed is None:
            chosen, log_probability = self._chosen(model_output, generator)
            probability[row, asked] = xp.exp(log_probability)
            words[row, asked] = chosen
            certainty = probability
            if self.order == "margin":
                certainty = xp.zeros_like(probability)
                certainty[row, asked] = margin(model_output.logits)
            if self._focus is not None:
                is_asked = xp.zeros_like(is_open)
                is_asked[row, asked] = True
                is_open = is_open & is_asked
            committed = top_k_confident(is_open, certainty, like(quotas[rows], sample))
            if self.distinct:
                committed = drop_duplicates(committed, words, certainty)
            if self._focus is not None:
                words, probability = self._focus.note(rows, is_open, words, probability, certainty)
                self._focus.committed(rows, committed)
        else:
            first = _first_columns(to_host(asked))
            is_first = first == np.arange(first.shape[1])
            found = commit_surest(
                allowed,
                model_output.logits,
                asked,
                to_host(is_open[row, asked]) & is_first,
                quotas[rows],
                temperature=self.temperature,
                generator=generator,
                distinct=self.distinct,
            )
            # where a position stands again, what came of it: all of its columns are written back
            everywhere = (np.take_along_axis(part, first, axis=1) for part in found)
            chosen, sure, is_committed = (like(part, sample) for part in everywhere)
            probability[row, asked], words[row, asked] = sure, chosen
            committed = xp.zeros_like(is_open)
            committed[row, asked] = is_committed
        if self.distinct or allowed is not None:
            quotas[rows] = to_host(xp.sum(xp.astype(committed, xp.int64), axis=1))
        self._count(quotas)
        predicted = xp.where(sample == self.mask_id, words, sample)
        return SchedulerOutput(xp.where(committed, words, sample), probability, predicted)

    def _quotas(self) -> np.ndarray:
        """(B,) tokens that the next step commits, unless two of them are alike and must differ."""
        return np.minimum(self.plan.quota(self._index, self.left), self._open_counts())

    def _chosen(
        self, model_output: ModelOutput, generator: np.random.Generator | None
    ) -> tuple[Array, Array]:
        """Tokens (B', n) and their log-probabilities."""
        if model_output.logits is None:
            return model_output.tokens, model_output.log_probability
        return choose_tokens(model_output.logits, self.temperature, generator)

    def _open(self, sample: Array, rows: np.ndarray) -> Array:  # noqa: ARG002 (other schedulers read it)
        """(B', L) True where the next step may commit a token."""
        return sample == self.mask_id

    def _open_counts(self) -> np.ndarray:
        """(B,) how many positions are open."""
        return self.left

    def _count(self, committed: np.ndarray) -> None:
        """Count a step that committed (B,) tokens."""
        self.left, self._index = self.left - committed, self._index + 1
