"""Captions of different requests, decoded together at the level of steps.

Each request decodes in a thread of its own, by the same code as always. When it asks the denoiser for a step,
it waits; one thread gathers all that wait and answers them by one pass over all their captions. So a new
caption joins the running ones at once, and one that is done leaves them. What each gets does not depend on
the others: captions are rows, and rows of a batch do not see each other.

What is asked for does not matter: with guidance an image brings its image-free branch along as a second
one, and constraints take the logits of their rows.

Shapes: I images of a request, K captions of an image, L positions, n of them asked for, V words.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ddcap.model.onnx_model import OnnxModel
from ddcap.model.step_request import StepRequest

_Result = TypeVar("_Result")
PATIENCE = 0.001  # seconds that a step waits for those that are between two of their own
ROWS = 64  # positions of captions of a step: one pass over more is no faster than a pass over each half


@dataclass(frozen=True)
class _Asked:
    """A step that one caption job asks for, and where its logits (n, V) go."""

    request: StepRequest
    images: int
    memory: Mapping[str, np.ndarray]
    answer: Future[np.ndarray]

    @property
    def kind(self) -> tuple[int, ...]:
        """Steps of one kind can be one: their images have as many positions."""
        return next(iter(self.memory.values())).shape[1:]

    @property
    def rows(self) -> int:
        """Positions of its captions that are computed."""
        return len(self.request.rows)


class JointModel(OnnxModel):
    """A model of ONNX graphs that many threads decode with, joined at every step.

    Args:
        model: computes the steps.
        rows: positions of captions of a step, at most; a step of one request may have more.
    """

    def __init__(self, model: OnnxModel, rows: int = ROWS) -> None:
        vars(self).update(vars(model))  # it shares the graphs; nothing is loaded again
        self._rows = rows
        self._condition = threading.Condition()
        self._waiting: list[_Asked] = []
        self.jobs = 0
        self._ends = False
        self.steps_run = self.requests_in_steps = 0
        self._stacked: tuple[list[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = ([], {})
        self._thread = threading.Thread(target=self._run, name="joint decoding", daemon=True)
        self._thread.start()

    def job(self, work: Callable[[], _Result]) -> _Result:
        """Run `work`, which decodes with this model; call it in a thread of its own."""
        with self._condition:
            self.jobs += 1
        try:
            return work()
        finally:
            with self._condition:
                self.jobs -= 1
                self._condition.notify()

    def step_logits(self, asked: StepRequest, images: int, memory: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `OnnxModel.step_logits`; the answer, once the joint step has run."""
        one = _Asked(asked, images, memory, Future())
        with self._condition:
            self._waiting.append(one)
            self._condition.notify()
        return one.answer.result()

    def for_bulk(self) -> JointModel:
        """Itself: it is for many at once."""
        return self

    def close(self) -> None:
        """End the thread; nobody may wait for a step."""
        with self._condition:
            self._ends = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._waiting and not self._ends:
                    self._condition.wait()
                if self._ends:
                    return
                until = time.monotonic() + PATIENCE
                while len(self._waiting) < self.jobs and self._has_room():
                    left = until - time.monotonic()
                    if left <= 0 or not self._condition.wait(left):
                        break
                taken = self._take()
            try:
                for one, answer in zip(taken, self._step(taken), strict=True):
                    one.answer.set_result(answer)
            except BaseException as error:  # whoever waits has to hear of it
                for one in taken:
                    if not one.answer.done():
                        one.answer.set_exception(error)

    def _has_room(self) -> bool:
        """Return True if a step that comes now could run with those that wait: the first one and its like."""
        first, *others = self._waiting
        return first.rows + sum(one.rows for one in others if one.kind == first.kind) < self._rows

    def _take(self) -> list[_Asked]:
        """The step that has waited longest, and those of its kind that it has room for."""
        taken: list[_Asked] = []
        left: list[_Asked] = []
        rows = 0
        for one in self._waiting:
            fits = not taken or (one.kind == taken[0].kind and rows + one.rows <= self._rows)
            (taken if fits else left).append(one)
            rows += one.rows if fits else 0
        self._waiting = left
        return taken

    def _step(self, taken: Sequence[_Asked]) -> list[np.ndarray]:
        """The logits of all that are taken, by one pass."""
        self.steps_run += 1
        self.requests_in_steps += len(taken)
        if len(taken) == 1:
            return [super().step_logits(taken[0].request, taken[0].images, taken[0].memory)]
        images = [one.images for one in taken]
        joined = StepRequest.joined([one.request for one in taken], images)
        logits = super().step_logits(joined, sum(images), self._memory([one.memory for one in taken]))
        ends = np.cumsum([len(one.request.asked) for one in taken])
        return np.split(logits, ends[:-1])

    def _memory(self, members: list[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        """Keys and values of the images side by side; made anew only when others take part."""
        before, stacked = self._stacked
        if len(members) != len(before) or any(a is not b for a, b in zip(members, before, strict=True)):
            stacked = {name: np.concatenate([one[name] for one in members]) for name in members[0]}
            self._stacked = (members, stacked)
        return stacked
