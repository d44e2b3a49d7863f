"""SIGTERM and SIGINT end a training after the step it is in, with a checkpoint, instead of in the middle.

A validation, before which all is saved, they end at once: schedulers soon kill what they have warned.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("ddcap")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)  # what schedulers send before they kill, and Ctrl-C


class Stopped(BaseException):
    """A signal ends the training where it is; no error, so that nobody takes it for one."""

    def __init__(self, by: signal.Signals) -> None:
        super().__init__(by.name)
        self.by = by


class Interruption:
    """Remembers a signal until the step is done; a second one acts at once, as if nobody had listened.

    Outside the main thread Python allows no handlers: there signals act as always.

    Args:
        accelerator: its processes have to agree, for a signal may reach some of them only.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._before: dict[signal.Signals, object] = {}
        self._acts_at_once = False
        self.signal: signal.Signals | None = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {one: signal.signal(one, self._remember) for one in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def agreed(self) -> signal.Signals | None:
        """The signal that reached any process since the start; all processes have to ask together."""
        if self._accelerator.num_processes == 1:
            return self.signal
        number = torch.tensor([self.signal or 0], device=self._accelerator.device)
        highest = int(self._accelerator.gather(number).max())
        return signal.Signals(highest) if highest else None

    def check(self) -> None:
        """Stop if a signal has reached any process; all processes have to check together.

        Raises:
            Stopped: in all of them.
        """
        by = self.agreed()
        if by is not None:
            raise Stopped(by)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Where all is saved: a signal does not wait. Of several processes each learns of it by `check`.

        Raises:
            Stopped: wherever the signal comes in, and if one came in before.
        """
        self._acts_at_once = self._accelerator.num_processes == 1
        try:
            self.check()
            yield
        finally:
            self._acts_at_once = False

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()
        if self._acts_at_once:
            raise Stopped(self.signal)
        logger.warning("%s: stopping as soon as all is saved", self.signal.name)

    def _restore(self) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)  # type: ignore[arg-type]  # what signal.signal gave us
        self._before = {}
