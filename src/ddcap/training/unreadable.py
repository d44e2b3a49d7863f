"""Pictures that a training could not read: it goes on without them and says so."""

from __future__ import annotations

import logging
from collections.abc import Iterable

logger = logging.getLogger("ddcap")

_MOST_NAMED = 20


class UnreadablePictures:
    """Names each picture once, up to a number of them, and counts all."""

    def __init__(self) -> None:
        self._reasons: set[str] = set()

    def note(self, reasons: Iterable[str]) -> None:
        """Take what a batch could not read, a line each; a picture may come again in every epoch."""
        for reason in reasons:
            if reason not in self._reasons:
                self._reasons.add(reason)
                if len(self._reasons) <= _MOST_NAMED:
                    logger.warning("left out: %s", reason)

    def report(self) -> None:
        """Say how many there were."""
        if self._reasons:
            logger.warning("%d pictures could not be read and were left out", len(self._reasons))
