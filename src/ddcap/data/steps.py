"""Training data to optimiser steps, as a pure function of (seed, epoch, step).

A resumed run reads exactly what an uninterrupted one would have read, with any number of loader processes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ddcap.data.batches import CaptionBatch, Draw, Part
from ddcap.errors import DataError
from ddcap.recipe import DataSettings


class StepData(Dataset[CaptionBatch]):
    """What steps are made of: a data set whose items are batches."""

    settings: DataSettings

    def draws(self, seed: int, epoch: int, views: int) -> Sequence[Draw]:
        """All pictures of an epoch in their order, with captions and views."""
        raise NotImplementedError

    def __getitem__(self, part: Part) -> CaptionBatch:
        """Read one part."""
        raise NotImplementedError


@dataclass(frozen=True)
class StepPlan:
    """How an optimiser step's captions are shared among processes and accumulation parts."""

    seed: int
    images_per_step: int
    processes: int = 1
    process: int = 0
    accumulation: int = 1

    def steps_per_epoch(self, data: StepData) -> float:
        """Optimiser steps in an epoch. The last may be shared with the next epoch, which its pictures end.

        Raises:
            DataError: if the data do not fill one step.
        """
        draws = len(data.draws(self.seed, 0, 1))
        if draws < self.images_per_step:
            size = data.settings.captions_per_image
            raise DataError(
                f"the training split fills {draws * size} captions, less than one step of "
                f"{self.images_per_step * size}; lower training.batch_size"
            )
        return draws / self.images_per_step

    @property
    def images_per_part(self) -> int:
        """Pictures that one process computes at once."""
        return self.images_per_step // (self.processes * self.accumulation)

    def first_image(self, part: int) -> int:
        """Where this process's part of a step begins among the step's pictures."""
        return (self.process * self.accumulation + part) * self.images_per_part

    def parts(self, data: StepData, first_step: int, last_step: int) -> _Parts:
        """This process's parts of the steps `first_step` to `last_step` - 1 of a training, in order."""
        return _Parts(self, data, first_step, last_step)


class _Parts(Sequence[Part]):
    """Parts cut out of the draws of epoch after epoch when they are asked for: an epoch can have millions.

    Epochs follow each other without a gap, so that none ends with pictures that do not fill a step.
    """

    def __init__(self, plan: StepPlan, data: StepData, first_step: int, last_step: int) -> None:
        self._plan, self._first = plan, first_step * plan.accumulation
        self._count = (last_step - first_step) * plan.accumulation
        self._per_epoch = len(data.draws(plan.seed, 0, 1))  # every epoch has as many
        # a step lies in one epoch or in two
        self._epoch = lru_cache(maxsize=2)(lambda epoch: data.draws(plan.seed, epoch, data.settings.views))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        plan = self._plan
        step, part = divmod(number % len(self) + self._first, plan.accumulation)
        start = step * plan.images_per_step + plan.first_image(part)
        return tuple(self._draw(number) for number in range(start, start + plan.images_per_part))

    def _draw(self, number: int) -> Draw:
        epoch, place = divmod(number, self._per_epoch)
        return self._epoch(epoch)[place]


def steps_beside(
    steps: Iterator[list[CaptionBatch]], beside: Iterator[list[CaptionBatch]]
) -> Iterator[list[CaptionBatch]]:
    """Steps whose parts are those of two data sets, each counted in its own epochs."""
    for ours, theirs in zip(steps, beside, strict=True):
        yield [*ours, *theirs]


def training_steps(
    data: StepData, plan: StepPlan, first_step: int, last_step: int
) -> Iterator[list[CaptionBatch]]:
    """The parts of the optimiser steps `first_step` to `last_step` - 1, counted over the whole training."""
    loader: DataLoader[CaptionBatch] = DataLoader(
        data,
        sampler=plan.parts(data, first_step, last_step),
        batch_size=None,
        num_workers=data.settings.workers,
        prefetch_factor=4 if data.settings.workers else None,
        worker_init_fn=_leave_signals_to_the_training,
    )
    batches = iter(loader)
    for _ in range(first_step, last_step):
        yield [next(batches) for _ in range(plan.accumulation)]


def _leave_signals_to_the_training(_: int) -> None:
    """A scheduler signals all processes of a job; the step that is under way still needs its loader."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
