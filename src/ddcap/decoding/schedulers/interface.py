"""The interface of schedulers: which positions of a caption a step fills, and with what.

It follows the schedulers of diffusers: `set_timesteps` plans, and `step` turns a sample and the model's
output into the sample of the next step. The loop in `decoding/sampler.py` knows nothing else of how a caption
is sampled. Two things differ, since captions of one batch have different lengths: each has timesteps of its
own, and a scheduler says which captions still run and at which positions it needs the model's output, so that
nothing else is computed.

Shapes: B captions, B' of them running, L positions, n of them asked for, S steps, V words (the id V is MASK).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ddcap.arrays import Array


@dataclass(frozen=True)
class ModelOutput:
    """The model's prediction of x_0 at the positions that a scheduler asked for.

    Attributes:
        positions: (B', n).
        tokens: (B', n) the likeliest token at each; None where there are logits.
        log_probability: (B', n) of these tokens; None where there are logits.
        logits: (B', n, V) for a scheduler that reads them, else None.
    """

    positions: Array
    tokens: Array | None = None
    log_probability: Array | None = None
    logits: Array | None = None


@dataclass(frozen=True)
class SchedulerOutput:
    """The result of one step.

    Attributes:
        prev_sample: (B', L) the sample of the next step.
        probability: (B', L) of the token that the model predicted at each position; 0 where none was.
        pred_original_sample: (B', L) the sample with what the model predicted where it was asked, in place of
            MASK; None of a scheduler that does not say it.
    """

    prev_sample: Array
    probability: Array
    pred_original_sample: Array | None = None


class AllowedTokens(Protocol):
    """The tokens that may stand in one caption. It is told of every one that is committed."""

    @property
    def usable(self) -> np.ndarray:
        """(V,) False for tokens that are never allowed."""

    def allows(self, position: int, token: int) -> bool:
        """Return True if `token` may be committed at a MASK position."""

    def possible(self, position: int) -> np.ndarray:
        """(V,) False for tokens that `allows` surely refuses; it may still refuse others."""

    def commit(self, position: int, token: int) -> None:
        """Take notice of a token that is allowed and now stands where a MASK was."""

    def hide(self, positions: Sequence[int]) -> None:
        """Take notice that these positions are MASK again."""


class Scheduler(Protocol):
    """A way to go from MASK to a caption.

    Attributes:
        timesteps: (S, B) planned t of each step, after `set_timesteps`.
        reads_logits: whether `step` needs logits, not only the likeliest tokens.
    """

    timesteps: np.ndarray
    reads_logits: bool

    def set_timesteps(self, num_inference_steps: int | None, sample: Array, lengths: Array) -> None:
        """Plan the steps, and begin anew.

        Args:
            num_inference_steps: asked-for number of steps; None leaves it to the scheduler.
            sample: (B, L) MASK where words are wanted; given words and padding are kept.
            lengths: (B,) tokens of each caption.
        """

    @property
    def is_done(self) -> bool:
        """True if no step is left."""

    @property
    def running(self) -> np.ndarray:
        """(B,) True for captions that the next step may change."""

    def timestep(self) -> np.ndarray:
        """(B,) t of the next step."""

    def positions(self, sample: Array, rows: np.ndarray) -> Array:
        """(B', n) positions at which the next step reads the model's output.

        Args:
            sample: (B', L) captions `rows`.
            rows: (B',) which captions of the batch these are.
        """

    def step(
        self,
        model_output: ModelOutput,
        timestep: np.ndarray,
        sample: Array,
        rows: np.ndarray,
        *,
        generator: np.random.Generator | None = None,
        allowed: Sequence[AllowedTokens] | None = None,
    ) -> SchedulerOutput:
        """Go one step on.

        Args:
            model_output: at `positions`.
            timestep: (B,) of this step.
            sample: (B', L) captions `rows`.
            rows: (B',) which captions of the batch these are.
            generator: source of randomness.
            allowed: of these captions; None allows all tokens.
        """
