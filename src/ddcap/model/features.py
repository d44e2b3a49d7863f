"""Image features, as the caption model sees them; tensors or numpy arrays, by runtime."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ddcap.data.concepts import ConceptEdits, ConceptTokens
from ddcap.data.persons import Persons


@dataclass(frozen=True)
class PreparedImages:
    """The CPU's part of encoding images, which can be done while the device is at work.

    Attributes:
        pixels: a tensor (I, 3, H, W) on the CPU; page-locked for a GPU, which then copies it by itself.
    """

    pixels: Any


@dataclass(frozen=True)
class ImageFeatures:
    """The features of images that the caption model sees.

    Attributes:
        memory: (B, P, C) one vector per image position, read by cross-attention; None for captions that have
            concepts but no image.
        summary: (B, S) one vector for the image, read by the length head; None with `memory`.
        concepts: what a tagger, or a detector that knows better, sees in the images, K concepts of each; None
            without a tagger.
        persons: what a detector says of persons; None without one, and for features from a cache.
    """

    memory: Any
    summary: Any
    concepts: ConceptTokens | None = None
    persons: Persons | None = None

    @property
    def images(self) -> int:
        """I, the number of images."""
        rows = self.memory if self.memory is not None else self.concepts.ids  # type: ignore[union-attr]
        count: int = rows.shape[0]
        return count

    def edited(self, edits: ConceptEdits) -> ImageFeatures:
        """The same features with concepts changed; who is told of persons asks no detector."""
        assert self.concepts is not None  # a model with a vocabulary sees some
        persons = (
            self.persons.silenced() if self.persons is not None and edits.tells_of_persons else self.persons
        )
        return replace(self, concepts=edits.apply(self.concepts), persons=persons)

    def looked_at(self, persons: Persons, concepts: ConceptTokens | None) -> ImageFeatures:
        """The same features with a detector's findings; concepts None are those that a tagger sees."""
        return replace(self, persons=persons, concepts=self.concepts if concepts is None else concepts)

    def to(self, device: Any) -> ImageFeatures:
        """The same features, which are tensors, on `device`."""
        parts = {name: part if part is None else part.to(device) for name, part in vars(self).items()}
        return ImageFeatures(**parts)
