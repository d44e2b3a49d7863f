"""What a training step reads, and what it is drawn as.

Shapes: I images, n captions per image, B = I n captions (grouped by image), L caption positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddcap.data.concepts import ConceptTokens


@dataclass(frozen=True)
class CaptionBatch:
    """One part of a training step.

    Attributes:
        pixels: (I, 3, H, W), or None when cached features, or captions without pictures, are given.
        memory: (I, P, C) cached features, or None.
        summary: (I, S) cached features, or None.
        tokens: (B, L) x_0, end token included, padded.
        lengths: (B,).
        positions: (N,) flat indices of the real positions in B x L.
        image_ids: of the I images.
        places: of the I images, each one's place in the part as it was drawn.
        unreadable: why pictures of the part are missing from it, a line each.
        concepts: of the I images; None where the encoder finds them, or there are none.
        is_blank: whether not one of the part's pictures could be read: then it holds one made up, which is
            computed, since other processes wait for that, and counts for nothing.
    """

    pixels: Tensor | None
    memory: Tensor | None
    summary: Tensor | None
    tokens: Tensor
    lengths: Tensor
    positions: Tensor
    image_ids: tuple[str, ...]
    places: tuple[int, ...]
    unreadable: tuple[str, ...] = ()
    concepts: ConceptTokens | None = None
    is_blank: bool = False

    @property
    def words(self) -> int:
        """Real positions that count."""
        return 0 if self.is_blank else len(self.positions)

    @property
    def pictures(self) -> int:
        """Images that count; with captions alone, what stands for them."""
        return 0 if self.is_blank else len(self.image_ids)

    def to(self, device: torch.device) -> CaptionBatch:
        """The same batch with every tensor on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor | ConceptTokens) else value
            for name, value in vars(self).items()
        }
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True)
class Draw:
    """One picture of a batch: which record, which of its captions, which view in which epoch."""

    record: int
    captions: tuple[int, ...]
    view: int
    epoch: int


Part = tuple[Draw, ...]
"""The pictures one process computes at once; every picture has as many captions."""


def fit_length(
    ids: list[int], max_length: int, *, end_id: int, padding_id: int, learn_padding: bool
) -> list[int]:
    """At most `max_length` ids, the last of them the end token; filled up to so many to learn the padding."""
    if len(ids) > max_length:
        ids = [*ids[: max_length - 1], end_id]
    return ids + [padding_id] * (max_length - len(ids)) if learn_padding else ids


def collate(
    rows: Sequence[Sequence[int]],
    image_ids: Sequence[str],
    *,
    padding_id: int,
    pixels: Sequence[Tensor] | None = None,
    features: Sequence[tuple[Tensor, Tensor]] | None = None,
    places: Sequence[int] | None = None,
    unreadable: Sequence[str] = (),
    concepts: ConceptTokens | None = None,
    is_blank: bool = False,
) -> CaptionBatch:
    """One batch of captions (B token rows, grouped by image) and I images: pixels, features, or neither.

    `places` are needed where images are missing from the part.
    """
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    tokens = torch.tensor([[*row, *[padding_id] * (longest - len(row))] for row in rows])
    real = torch.arange(longest) < lengths.unsqueeze(1)  # (B, L)
    memory, summary = zip(*features, strict=True) if features is not None else (None, None)
    return CaptionBatch(
        pixels=torch.stack(list(pixels)) if pixels is not None else None,
        memory=torch.stack(memory).float() if memory is not None else None,
        summary=torch.stack(summary).float() if summary is not None else None,
        tokens=tokens,
        lengths=lengths,
        positions=real.flatten().nonzero().squeeze(1),
        image_ids=tuple(image_ids),
        places=tuple(places if places is not None else range(len(image_ids))),
        unreadable=tuple(unreadable),
        concepts=concepts,
        is_blank=is_blank,
    )
