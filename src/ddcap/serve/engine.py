"""Between requests and the model: a bounded queue, a thread for each caption on its way, joint decoding."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from ddcap.captioner import Captioner
from ddcap.errors import DDCapError
from ddcap.machine import own_cores
from ddcap.serve.joint import ROWS, JointModel

_Result = TypeVar("_Result")


class BusyError(DDCapError):
    """The queue is full; `retry_after` says in how many seconds it may not be."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after} s")
        self.retry_after = retry_after


class TooLateError(DDCapError):
    """A request took longer than it may."""


@dataclass(frozen=True)
class EngineSettings:
    """Limits on what is done at once.

    Attributes:
        together: images decoded together.
        queue: images that may wait beyond these.
        seconds: that a request may take, waiting included.
        lanes: groups that are decoded together, each on a core of its own; None: one a core, see `own_cores`.
        rows: positions of captions of a joint step, at most.
    """

    together: int = 8
    queue: int = 64
    seconds: float = 60.0
    lanes: int | None = None
    rows: int = ROWS


class Engine:
    """Runs a captioner's work for many at once.

    Args:
        captioner: of the model; of ONNX graphs, whose captions are decoded together step by step.
        settings: how much is done at once.
    """

    def __init__(self, captioner: Captioner, settings: EngineSettings | None = None) -> None:
        self.settings = settings or EngineSettings()
        self.captioner = captioner
        self.lanes: list[JointModel] = []
        if captioner.runtime == "onnx":
            # a lane for each core, on one thread: small products side by side gain more than one on all cores
            count = self.settings.lanes or own_cores()
            self.lanes = [JointModel(captioner.model.for_bulk(), self.settings.rows) for _ in range(count)]
        self._captioners = [
            Captioner(lane, captioner.tokenizer, confidence=captioner.confidence) for lane in self.lanes
        ]
        self._pool = ThreadPoolExecutor(self.settings.together, thread_name_prefix="caption")
        self._lock = threading.Lock()
        self.inside = 0  # images that are computed or wait
        self._mean_seconds = 0.1

    async def run(self, work: Callable[[Captioner], _Result], images: int = 1) -> _Result:
        """Do `work` with the captioner in a thread, as soon as one is free.

        Args:
            work: takes the captioner.
            images: how many places of the queue it takes.

        Raises:
            BusyError: if the queue has no place for them.
            TooLateError: if it takes longer than a request may.
        """
        with self._lock:
            self.check_room(images)
            self.inside += images

        def timed() -> _Result:
            begun = time.monotonic()
            try:
                if not self.lanes:
                    return work(self.captioner)
                lane = min(range(len(self.lanes)), key=lambda number: self.lanes[number].jobs)
                return self.lanes[lane].job(lambda: work(self._captioners[lane]))
            finally:
                took = (time.monotonic() - begun) / images
                with self._lock:
                    self.inside -= images
                    self._mean_seconds += 0.1 * (took - self._mean_seconds)

        future = self._pool.submit(timed)
        future.add_done_callback(lambda done: self._give_back(done, images))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.settings.seconds)
        except (asyncio.TimeoutError, TimeoutError):  # two classes before Python 3.11
            raise self.too_late() from None

    def too_late(self) -> TooLateError:
        """Return the message for a request that takes longer than it may."""
        return TooLateError(f"took longer than {self.settings.seconds:g} s; ask for fewer images or captions")

    def check_room(self, images: int = 1) -> None:
        """Raise `BusyError` if the queue has no place for so many images."""
        if self.inside + images > self.settings.together + self.settings.queue:
            raise BusyError(self._retry_after())

    def _give_back(self, done: Any, images: int) -> None:
        if done.cancelled():  # it never began
            with self._lock:
                self.inside -= images

    def _retry_after(self) -> int:
        return max(1, round(self.inside * self._mean_seconds / self.settings.together))

    def close(self) -> None:
        """Finish what was accepted, then end the threads."""
        self._pool.shutdown(wait=True)
        for lane in self.lanes:
            lane.close()
