"""Rows of images that failed: tried again by the next job, and replaced by what becomes of them then."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np

from ddcap.bulk.walk import SeenNames


class FailedRows:
    """Rows of an output that are errors, and those of them that are out of date; some 40 bytes for each.

    Args:
        key: of a name, see `ImageNames.key`.
    """

    def __init__(self, key: Callable[[str], str]) -> None:
        self._names, self._resolved, self._told = SeenNames(key), SeenNames(key), SeenNames()
        self._hashes, self._places = array("Q"), array("Q")

    def __contains__(self, name: str) -> bool:
        return len(self._names) > 0 and name in self._names

    def add(self, name: str, place: int, text: str) -> None:
        """Take a row.

        Args:
            name: of the image.
            place: of the row; later rows have larger ones.
            text: of the row.
        """
        self._names.add(name)
        self._told.add(text)
        self._hashes.append(self._names.number(name))
        self._places.append(place)

    def is_told(self, text: str) -> bool:
        """Return True if there is the very same row."""
        return text in self._told

    def resolve(self, name: str) -> None:
        """There is a better row of it now, or it needs none."""
        if name in self._names:
            self._resolved.add(name)

    def resolve_all(self, done: SeenNames) -> None:
        """Resolve those that are in `done`."""
        for number in self._hashes:
            if done.holds(number):
                self._resolved.add_number(number)

    def stale(self) -> np.ndarray:
        """Places, sorted, of the rows of names that are resolved, or that have a later error."""
        hashes, places = (np.array(one, dtype=np.uint64) for one in (self._hashes, self._places))
        order = np.lexsort((places, hashes))
        hashes, places = hashes[order], places[order]
        has_later = np.append(hashes[1:] == hashes[:-1], np.zeros(min(1, len(hashes)), dtype=bool))
        is_resolved = np.array([self._resolved.holds(int(number)) for number in hashes], dtype=bool)
        return np.sort(places[has_later | is_resolved])
