"""The record of a decoding: the tokens that each step committed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ddcap.arrays import Array, array_namespace, device, to_host


@dataclass(frozen=True)
class DecodingResult:
    """A decoded batch with its history. B captions, L positions, S steps.

    Attributes:
        tokens: (B, L) final tokens; positions past the length hold the padding id.
        lengths: (B,) tokens of each caption, end token included.
        confidences: (B, L) probability of each final token when it was committed; 1 for given tokens.
        history: (S + 1, B, L) tokens before the first step and after each.
        step_confidences: (S, B, L) probability of the token chosen at each position in each step; 0 where
            none was.
        timesteps: (S, B) the t that the model was told.
    """

    tokens: Array
    lengths: Array
    confidences: Array
    history: Array
    step_confidences: Array
    timesteps: Array

    @classmethod
    def of_steps(
        cls,
        lengths: Array,
        confidences: Array,
        history: Sequence[Array],
        step_confidences: Sequence[Array],
        timesteps: Array,
    ) -> DecodingResult:
        """The record of a decoder that kept tokens and confidences (B, L) of each step."""
        xp = array_namespace(lengths)
        return cls(
            tokens=history[-1],
            lengths=lengths,
            confidences=confidences,
            history=xp.stack(history),
            step_confidences=xp.stack(step_confidences),
            timesteps=timesteps,
        )

    def on_host(self) -> DecodingResult:
        """The same in arrays of numpy."""
        return DecodingResult(**{name: to_host(value) for name, value in vars(self).items()})

    def evidence(self, length_penalty: float = 1.0) -> Array:
        """(B,) how likely the model finds each caption, see `evidence`."""
        return evidence(self.confidences, self.lengths, length_penalty)

    def until(self, end_id: int) -> Array:
        """(B, L) the tokens, with end tokens from the first one on."""
        return until(self.tokens, end_id)

    def select(self, rows: Array) -> DecodingResult:
        """The captions `rows` (n,), in that order, without the padding that only others need."""
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        return DecodingResult(
            tokens=self.tokens[rows, :longest],
            lengths=lengths,
            confidences=self.confidences[rows, :longest],
            history=self.history[:, rows, :longest],
            step_confidences=self.step_confidences[:, rows, :longest],
            timesteps=self.timesteps[:, rows],
        )

    def continued(self, again: DecodingResult, hidden: Array) -> DecodingResult:
        """The record of these captions and of what followed: they were decoded `again`, with words hidden.

        Args:
            again: begins with these captions, MASK where they are hidden.
            hidden: (B, L).
        """
        xp = array_namespace(self.tokens)
        hiding = xp.zeros_like(self.step_confidences[:1])  # the step that hides them commits nothing
        return DecodingResult(
            tokens=again.tokens,
            lengths=self.lengths,
            confidences=xp.where(hidden, again.confidences, self.confidences),
            history=xp.concat([self.history, again.history]),
            step_confidences=xp.concat([self.step_confidences, hiding, again.step_confidences]),
            timesteps=xp.concat([self.timesteps, again.timesteps[:1], again.timesteps]),
        )

    def where(self, is_other: Array, other: DecodingResult) -> DecodingResult:
        """Take the captions `is_other` (B,) from `other`, which `continued` made; the rest stays as it is."""
        xp, steps = array_namespace(self.tokens), len(self.step_confidences)
        after, nothing = other.history[steps + 1 :], xp.zeros_like(other.step_confidences[steps:])
        rows = is_other[:, None]
        return DecodingResult(
            tokens=xp.where(rows, other.tokens, self.tokens),
            lengths=self.lengths,
            confidences=xp.where(rows, other.confidences, self.confidences),
            history=xp.concat([self.history, xp.where(rows, after, self.tokens)]),
            step_confidences=xp.concat(
                [self.step_confidences, xp.where(rows, other.step_confidences[steps:], nothing)]
            ),
            timesteps=other.timesteps,
        )


def evidence(confidences: Array, lengths: Array, length_penalty: float = 1.0) -> Array:
    """(B,) log-probability of captions / tokens ** length_penalty.

    The logarithm sums over the tokens, each as probable as it was when it was committed. Without a penalty
    (0) short captions win; 1 gives the mean per token. Source: the length penalty of beam search, Wu et al.
    2016, in its plain form.

    Args:
        confidences: (B, L) probability of each token; what lies past the lengths is not read.
        lengths: (B,).
        length_penalty: see above.
    """
    xp = array_namespace(confidences)
    places = xp.arange(confidences.shape[1], device=device(confidences))
    is_token = places < lengths[:, None]  # (B, L)
    total = xp.sum(xp.where(is_token, xp.log(xp.clip(confidences, min=1e-30)), 0.0), axis=1)
    return total / xp.astype(lengths, xp.float32) ** length_penalty


def until(tokens: Array, end_id: int) -> Array:
    """(B, L) tokens, with end tokens from the first one on."""
    xp = array_namespace(tokens)
    ended = xp.cumulative_sum(xp.astype(tokens == end_id, xp.int64), axis=1) > 0
    return xp.where(ended, end_id, tokens)


@dataclass(frozen=True)
class TraceEvent:
    """A token that one step committed (or, with replacement noise, changed) at one position.

    Attributes:
        step: number of the denoising step, from 0.
        timestep: timestep t of that step.
        position: position in the caption, from 0.
        token_id: id of the token.
        token: printable piece of the token; "" for the end token.
        probability: probability of the token when it was committed.
    """

    step: int
    timestep: int
    position: int
    token_id: int
    token: str
    probability: float


@dataclass(frozen=True)
class Trace:
    """The steps in which the model built one caption.

    Attributes:
        events: all tokens committed, by step, the most certain first within a step.
        frames: pieces of the whole caption after each step; "▁" stands for MASK.
    """

    events: tuple[TraceEvent, ...]
    frames: tuple[tuple[str, ...], ...]


def build_trace(
    result: DecodingResult, row: int, pieces_of: dict[int, str], mask_id: int | None = None
) -> Trace:
    """The trace of caption `row` of a decoded batch.

    Args:
        result: the decoded batch.
        row: which caption.
        pieces_of: printable piece of every token id that occurs, MASK included.
        mask_id: MASK; a step that hides tokens again has a frame, but no events.
    """
    length = int(result.lengths[row])
    history = result.history[:, row, :length].tolist()
    probabilities = result.step_confidences[:, row, :length].tolist()
    events: list[TraceEvent] = []
    frames: list[tuple[str, ...]] = []
    for step, (before, after) in enumerate(itertools.pairwise(history)):
        changed = [position for position in range(length) if before[position] != after[position]]
        if not changed:
            continue  # this caption was finished earlier than others of its batch
        events.extend(
            TraceEvent(
                step=step,
                timestep=int(result.timesteps[step, row]),
                position=position,
                token_id=after[position],
                token=pieces_of[after[position]],
                probability=probabilities[step][position],
            )
            for position in sorted(changed, key=lambda position: -probabilities[step][position])
            if after[position] != mask_id
        )
        frames.append(tuple(pieces_of[token] for token in after))
    return Trace(tuple(events), tuple(frames))
