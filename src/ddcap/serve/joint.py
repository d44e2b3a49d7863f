"""Captions of different requests, decoded together at the level of steps.

Each request decodes in a thread of its own, by the same code as always. When it asks the denoiser for a step,
it waits; one thread gathers all that wait and answers them by one pass over all their captions. So a new
caption joins the running ones at once, and one that is done leaves them. What each gets does not depend on
the others: captions are rows, and rows of a batch do not see each other.

Shapes: K captions of a picture, L positions, n of them asked for, V words.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ddcap.model.features import ImageFeatures
from ddcap.model.onnx_model import OnnxModel, OnnxSteps

_Result = TypeVar("_Result")
PATIENCE = 0.001  # seconds that a step waits for those that are between two of their own


@dataclass
class _Asked:
    """What one caption job asks for, and where the answer goes."""

    member: JointSteps
    tokens: np.ndarray
    timestep: np.ndarray
    lengths: np.ndarray
    positions: np.ndarray
    added: np.ndarray | None
    answer: Future[tuple[np.ndarray, np.ndarray]]


class JointModel:
    """A model of ONNX graphs that many threads decode with, joined at every step; else like the model itself.

    Args:
        model: computes the steps.
        most: captioned pictures of a step, at most.
    """

    def __init__(self, model: OnnxModel, most: int = 16) -> None:
        self._model, self._most = model, most
        self._condition = threading.Condition()
        self._waiting: list[_Asked] = []
        self.jobs = 0
        self._ends = False
        self.steps_run = self.pictures_in_steps = 0
        self._stacked: tuple[list[JointSteps], dict[str, np.ndarray]] = ([], {})
        self._thread = threading.Thread(target=self._run, name="joint decoding", daemon=True)
        self._thread.start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

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

    def denoising_steps(self, features: ImageFeatures, *, with_image_free: bool) -> Any:
        """See `OnnxModel.denoising_steps`; with guidance, or of several pictures, a request runs alone."""
        if with_image_free or features.images != 1:
            return self._model.denoising_steps(features, with_image_free=with_image_free)
        return JointSteps(self, self._model, features)

    def for_bulk(self) -> JointModel:
        """Itself: it is for many at once."""
        return self

    def close(self) -> None:
        """End the thread; nobody may wait for a step."""
        with self._condition:
            self._ends = True
            self._condition.notify()
        self._thread.join()

    def ask(self, asked: _Asked) -> tuple[np.ndarray, np.ndarray]:
        """The answer to one request for a step, once the joint one has run."""
        with self._condition:
            self._waiting.append(asked)
            self._condition.notify()
        return asked.answer.result()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._waiting and not self._ends:
                    self._condition.wait()
                if self._ends:
                    return
                until = time.monotonic() + PATIENCE
                while len(self._waiting) < min(self.jobs, self._most):
                    left = until - time.monotonic()
                    if left <= 0 or not self._condition.wait(left):
                        break
                size = len(self._waiting[0].tokens)  # captions of a picture: a step has as many of each
                taken = [one for one in self._waiting if len(one.tokens) == size][: self._most]
                self._waiting = [one for one in self._waiting if one not in taken]
            try:
                for one, answer in zip(taken, self._step(taken), strict=True):
                    one.answer.set_result(answer)
            except BaseException as error:  # whoever waits has to hear of it
                for one in taken:
                    if not one.answer.done():
                        one.answer.set_exception(error)

    def _step(self, taken: Sequence[_Asked]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The likeliest tokens and their log-probabilities for all that are taken, by one pass."""
        self.steps_run += 1
        self.pictures_in_steps += len(taken)
        longest = max(one.tokens.shape[1] for one in taken)
        most = max(one.positions.shape[1] for one in taken)
        size = len(taken[0].tokens)
        asked = (
            np.concatenate([_wider(one.tokens, longest) for one in taken]),
            np.concatenate([one.timestep for one in taken]),
            np.concatenate([one.lengths for one in taken]),
            np.concatenate([_wider(one.positions, most) for one in taken]),
        )
        memory = self._memory([one.member for one in taken])
        added = np.zeros((len(taken) * size, self._model.mask_id), dtype=np.float32)
        for number, one in enumerate(taken):
            if one.added is not None:
                added[number * size : (number + 1) * size] = one.added
        chosen, log_probability = (
            part.reshape(len(taken), size, most)
            for part in self._model.choose(self._model.step_logits(asked, len(taken), memory), added)
        )
        counts = [one.positions.shape[1] for one in taken]
        return [(chosen[row, :, :count], log_probability[row, :, :count]) for row, count in enumerate(counts)]

    def _memory(self, members: list[JointSteps]) -> Mapping[str, np.ndarray]:
        """Keys and values of the pictures side by side; made anew only when others take part."""
        if members != self._stacked[0]:
            names = members[0].memory
            arrays = {name: np.concatenate([one.memory[name] for one in members]) for name in names}
            self._stacked = (members, arrays)
        return self._stacked[1]


class JointSteps(OnnxSteps):
    """The denoiser at work on captions of one picture, beside those of others."""

    def __init__(self, joint: JointModel, model: OnnxModel, features: ImageFeatures) -> None:
        super().__init__(model, features, with_image_free=False)
        self._joint = joint

    @property
    def memory(self) -> dict[str, np.ndarray]:
        """Keys and values of the picture, as of one image."""
        return self._memory

    def likeliest(
        self,
        tokens: np.ndarray,
        timestep: np.ndarray,
        lengths: np.ndarray,
        positions: np.ndarray,
        added: np.ndarray | None = None,
        scale: float = 1.0,  # noqa: ARG002 (without image-free logits there is nothing to guide)
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `decoding.guidance.DenoisingSteps`."""
        return self._joint.ask(_Asked(self, tokens, timestep, lengths, positions, added, Future()))


def _wider(values: np.ndarray, width: int) -> np.ndarray:
    """(K, width): rows filled up with their own last value; what stands behind is not read."""
    return (
        np.pad(values, ((0, 0), (0, width - values.shape[1])), mode="edge")
        if values.shape[1] < width
        else values
    )
