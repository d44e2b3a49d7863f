"""A pass of the denoiser as its ONNX graph takes it, with the positions that it computes.

Most of a pass are products with rows, one for each position. Padding needs none. With the concentrated
attention mask nobody attends to a MASK token, so one that is not asked for needs none either, and the logits
of the others are the same.

Shapes: I images, B captions (B a multiple of I), L caption positions, N of them all that are computed, n of
these asked for, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class StepRequest(NamedTuple):
    """A pass of the denoiser over B captions, grouped by image; places are those of the flat (B * L,).

    Attributes:
        tokens: (B, L).
        timestep: (B,).
        lengths: (B,).
        rows: (N,) places that are computed, in ascending order.
        asked: (n,) those of them whose logits are wanted, in ascending order.
    """

    tokens: np.ndarray
    timestep: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    asked: np.ndarray

    @classmethod
    def at(
        cls,
        tokens: np.ndarray,
        timestep: np.ndarray,
        lengths: np.ndarray,
        positions: np.ndarray,
        hidden: int | None,
    ) -> tuple[StepRequest, np.ndarray]:
        """A pass for logits at `positions` (B, n'); also which row of these logits (n, V) is each one's.

        Args:
            tokens: (B, L).
            timestep: (B,).
            lengths: (B,).
            positions: (B, n'); some may be given twice.
            hidden: a token that nobody attends to: it is computed only where it is asked for.
        """
        captions, length = tokens.shape
        places = positions + np.arange(captions)[:, None] * length
        is_asked = np.zeros(tokens.size, dtype=bool)
        is_asked[places] = True
        is_row = np.arange(length) < lengths[:, None]
        if hidden is not None:
            is_row &= tokens != hidden
        rows = np.flatnonzero(is_row.reshape(-1) | is_asked)
        numbers = np.cumsum(is_asked) - 1
        return cls(tokens, timestep, lengths, rows, np.flatnonzero(is_asked)), numbers[places]

    @classmethod
    def joined(cls, parts: Sequence[StepRequest], images: Sequence[int]) -> StepRequest:
        """Several passes as one, whose logits follow each other.

        Shorter captions are padded, and images with fewer captions get further ones, of which nothing is
        computed.

        Args:
            parts: passes.
            images: I of each.
        """
        length = max(one.tokens.shape[1] for one in parts)
        per_image = max(len(one.tokens) // count for one, count in zip(parts, images, strict=True))
        wider = [one._grouped(count, per_image, length) for one, count in zip(parts, images, strict=True)]
        starts = np.cumsum([0, *(one.tokens.size for one in wider[:-1])])
        moved = [
            one._replace(rows=one.rows + start, asked=one.asked + start)
            for one, start in zip(wider, starts, strict=True)
        ]
        return cls(*(np.concatenate(arrays) for arrays in zip(*moved, strict=True)))

    def _grouped(self, images: int, per_image: int, length: int) -> StepRequest:
        """The same with `per_image` captions of each image, and `length` positions of each caption."""
        captions, own = self.tokens.shape
        number = np.arange(captions)
        number += (
            number // (captions // images) * (per_image - captions // images)
        )  # of each among the others
        tokens = np.zeros((images * per_image, length), dtype=self.tokens.dtype)
        tokens[number, :own] = self.tokens
        timestep, lengths = (np.zeros(len(tokens), dtype=one.dtype) for one in (self.timestep, self.lengths))
        timestep[number], lengths[number] = self.timestep, self.lengths
        place = (number[:, None] * length + np.arange(own)).reshape(-1)
        return StepRequest(tokens, timestep, lengths, place[self.rows], place[self.asked])
