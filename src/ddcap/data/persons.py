"""Persons in images, as a detector sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ddcap.arrays import Array


@dataclass(frozen=True)
class Persons:
    """A detector's findings on persons in images: arrays of numpy or torch.

    Attributes:
        probability: (I,) calibrated probability that a person would name a person.
        evidence: (I,) its log-odds, less those of any image: above 0 for persons, below 0 against them.
        count: (I,) persons found.
        place: (I,) where the centre of the largest is, from 0 on the left to 1 on the right; 0.5 of none.
    """

    probability: Array
    evidence: Array
    count: Array
    place: Array

    def to(self, device: Any) -> Persons:
        """The same, which are tensors, on `device`."""
        return Persons(*(part.to(device) for part in vars(self).values()))

    def silenced(self) -> Persons:
        """The same where somebody who knows better has spoken: there is no evidence left."""
        return Persons(self.probability, 0 * self.evidence, self.count, self.place)
