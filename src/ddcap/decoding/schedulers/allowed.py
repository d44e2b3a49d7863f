"""Commit the surest tokens that are allowed. Not in the paper.

Shapes: B captions, L positions, n of them asked for, V words.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from ddcap.arrays import Array, log_sum_exp, to_host
from ddcap.decoding.predictor import gumbel_scores
from ddcap.decoding.schedulers.interface import AllowedTokens
from ddcap.errors import DDCapError


def commit_surest(
    captions: Sequence[AllowedTokens],
    logits: Array,
    asked: Array,
    is_open: np.ndarray,
    quota: np.ndarray,
    *,
    temperature: float = 0.0,
    generator: np.random.Generator | None = None,
    distinct: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Commit the surest tokens that are allowed; of a position whose token is refused, its next one competes.

    Args:
        captions: what is allowed in each of B captions; they are told of what is committed.
        logits: (B, n, V).
        asked: (B, n) their positions.
        is_open: (B, n) False at positions that are left alone.
        quota: (B,) tokens to commit in each caption.
        temperature: see `guidance.gumbel_scores`.
        generator: source of randomness.
        distinct: no token twice in a caption; then fewer than `quota` may be committed.

    Returns:
        Tokens (B, n), their probabilities, and whether they were committed.

    Raises:
        DDCapError: if no token is allowed at any position of a caption.
    """
    values = to_host(logits).astype(np.float32)
    values[..., ~captions[0].usable] = -np.inf
    probabilities = values - log_sum_exp(values)[..., None]
    scores = gumbel_scores(probabilities, temperature, generator)
    chosen = scores.argmax(axis=2)
    certainty = np.exp(np.take_along_axis(probabilities, chosen[..., None], axis=2)[..., 0])
    committed = np.zeros(chosen.shape, dtype=bool)
    places = to_host(asked)
    for row, caption in enumerate(captions):
        columns = np.flatnonzero(is_open[row]).tolist()
        if not columns or not quota[row]:
            continue
        queue = [
            (-float(certainty[row, column]), int(places[row, column]), column, int(chosen[row, column]))
            for column in columns
        ]
        heapq.heapify(queue)
        others = {column: _ranked(caption, place, scores[row, column]) for _, place, column, _ in queue}
        done: list[int] = []
        while queue and len(done) < quota[row]:
            sure, place, column, token = heapq.heappop(queue)
            if not caption.allows(place, token):
                for other in itertools.islice(others[column], 1):
                    sure = -float(np.exp(probabilities[row, column, other]))
                    heapq.heappush(queue, (sure, place, column, other))
            elif not (distinct and token in done):
                caption.commit(place, token)
                chosen[row, column], certainty[row, column] = token, -sure
                committed[row, column] = True
                done.append(token)
        if not done:
            raise DDCapError(
                "the constraints leave no word for a blank; ban fewer words, or loosen the others"
            )
    return chosen, certainty, committed


def _ranked(caption: AllowedTokens, place: int, scores: np.ndarray) -> Iterator[int]:
    """Tokens that may stand at a MASK position, by scores (V,), the highest first."""
    possible = np.where(caption.possible(place), scores, -np.inf)
    yield from np.argsort(-possible, kind="stable")[: int((possible > -np.inf).sum())].tolist()
