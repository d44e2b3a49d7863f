"""Pictures that a training could not read: it goes on without them and says so."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

from ddcap.errors import DataError
from ddcap.processes import ALONE, Processes

logger = logging.getLogger("ddcap")

_MOST_NAMED = 20
_MOST_IN_A_ROW = 20


class UnreadablePictures:
    """Names each picture once, up to a number of them, and counts all.

    Args:
        steps_per_epoch: of the training.
        processes: this one and those that read other pictures.
    """

    def __init__(self, steps_per_epoch: float, processes: Processes = ALONE) -> None:
        self._reasons: set[str] = set()
        self._latest = ""
        self._processes = processes
        self._in_a_row, self._most = 0, min(_MOST_IN_A_ROW, math.ceil(steps_per_epoch))

    def note(self, reasons: Iterable[str]) -> None:
        """Take what a batch could not read, a line each; a picture may come again in every epoch."""
        for reason in reasons:
            self._latest = reason
            if reason not in self._reasons:
                self._reasons.add(reason)
                if len(self._reasons) <= _MOST_NAMED:
                    logger.warning("left out: %s", reason)

    def count_step(self, *, is_blank: bool) -> None:
        """Count a step; one that is blank has no picture in any process.

        Raises:
            DataError: if so many in a row are blank that this is no matter of single pictures.
        """
        self._in_a_row = self._in_a_row + 1 if is_blank else 0
        if self._in_a_row == self._most:
            reason = next(filter(None, self._processes.gather(self._latest)))
            raise DataError(
                f"{reason}; nor could any other picture of {self._most} steps in a row be read; look the "
                "data set over with `ddcap data check`"
            )

    def report(self) -> None:
        """Say how many there were in all processes; each of them has to ask."""
        everyones = set().union(*self._processes.gather(self._reasons))
        if everyones and self._processes.index == 0:
            logger.warning("%d pictures could not be read and were left out", len(everyones))
