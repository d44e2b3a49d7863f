"""Focus: a step looks only at those MASK positions where a word is likely to be committed.

What the model says of a MASK changes little from step to step, unless a word came beside it. So most of them
need not be predicted anew at every step. Under the concentrated attention mask nobody attends to a MASK
token, and the ONNX graphs then compute nothing at all for it. Not in the paper.

Shapes: B captions, B' of them running, L positions.
"""

from __future__ import annotations

import numpy as np

from ddcap.arrays import Array, array_namespace, device, like
from ddcap.decoding.schedulers.surest import top_k_confident

REACH = 1
"""Positions to each side of a new word that are looked at again."""


class Focus:
    """Predictions of captions so far, and where to look next: at the surest positions, and beside new words.

    Positions that were never looked at are looked at.

    Args:
        surest: positions of a caption, at least as many as are to be committed.
        sample: (B, L) captions before the first step.
    """

    def __init__(self, surest: int, sample: Array) -> None:
        xp, size, on = array_namespace(sample), tuple(sample.shape), device(sample)
        self.surest = surest
        self._certainty = xp.zeros(size, dtype=xp.float32, device=on)
        self._probability = xp.zeros(size, dtype=xp.float32, device=on)
        self._words = xp.zeros_like(sample)
        self._wants = xp.ones(size, dtype=xp.bool, device=on)  # whatever the certainty

    def asked(self, is_open: Array, quota: np.ndarray, rows: np.ndarray) -> Array:
        """(B', L) True at open positions to look at.

        Args:
            is_open: (B', L) True where a token may be committed.
            quota: (B',) tokens that will be.
            rows: (B',) which captions these are.
        """
        at, length = like(rows, is_open), is_open.shape[1]
        count = like(np.maximum(self.surest, quota), is_open)
        surest = top_k_confident(is_open, self._certainty[at, :length], count)
        return surest | (is_open & self._wants[at, :length])

    def note(
        self, rows: np.ndarray, asked: Array, words: Array, probability: Array, certainty: Array
    ) -> tuple[Array, Array]:
        """Store what a step predicts; returns the last predictions for all positions, (B', L) each.

        Args:
            rows: (B',) which captions these are.
            asked: (B', L) True where they were looked at.
            words: (B', L) predicted there.
            probability: (B', L) of these.
            certainty: (B', L) by which positions are compared.
        """
        xp, at, length = array_namespace(asked), like(rows, asked), asked.shape[1]
        known = []
        for store, new in (
            (self._words, words),
            (self._probability, probability),
            (self._certainty, certainty),
        ):
            known.append(xp.where(asked, new, store[at, :length]))
            store[at, :length] = known[-1]
        self._wants[at, :length] = self._wants[at, :length] & ~asked
        return known[0], known[1]

    def committed(self, rows: np.ndarray, committed: Array) -> None:
        """Look again beside the words that were committed, at (B', L) True."""
        xp, at, length = array_namespace(committed), like(rows, committed), committed.shape[1]
        beside = xp.zeros_like(committed)
        for distance in range(1, REACH + 1):
            beside[:, distance:] = beside[:, distance:] | committed[:, :-distance]
            beside[:, :-distance] = beside[:, :-distance] | committed[:, distance:]
        self._wants[at, :length] = self._wants[at, :length] | beside
