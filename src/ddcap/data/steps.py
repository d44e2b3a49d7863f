"""Training data to optimiser steps, as a pure function of (seed, epoch, step).

A resumed run reads exactly what an uninterrupted one would have read, with any number of loader processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

    def steps_per_epoch(self, data: StepData) -> int:
        """Whole optimiser steps in an epoch.

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
        return draws // self.images_per_step

    @property
    def images_per_part(self) -> int:
        """Pictures that one process computes at once."""
        return self.images_per_step // (self.processes * self.accumulation)

    def first_image(self, part: int) -> int:
        """Where this process's part of a step begins among the step's pictures."""
        return (self.process * self.accumulation + part) * self.images_per_part

    def parts(self, data: StepData, epoch: int, first_step: int = 0) -> _Parts:
        """This process's parts of every step of an epoch, from `first_step` on, in order."""
        return _Parts(self, data.draws(self.seed, epoch, data.settings.views), first_step)


class _Parts(Sequence[Part]):
    """The parts of an epoch, cut out of its draws when they are asked for: an epoch can have millions."""

    def __init__(self, plan: StepPlan, draws: Sequence[Draw], first_step: int) -> None:
        self._plan, self._draws, self._first = plan, draws, first_step * plan.accumulation

    def __len__(self) -> int:
        return len(self._draws) // self._plan.images_per_step * self._plan.accumulation - self._first

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        plan = self._plan
        step, part = divmod(number % len(self) + self._first, plan.accumulation)
        start = step * plan.images_per_step + plan.first_image(part)
        return tuple(self._draws[start : start + plan.images_per_part])


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
    per_epoch = plan.steps_per_epoch(data)
    step = first_step
    while step < last_step:
        epoch, within = divmod(step, per_epoch)
        parts = plan.parts(data, epoch, within)
        count = min(len(parts), (last_step - step) * plan.accumulation)
        loader: DataLoader[CaptionBatch] = DataLoader(
            data,
            sampler=itertools.islice(parts, count),
            batch_size=None,
            num_workers=data.settings.workers,
            prefetch_factor=4 if data.settings.workers else None,
        )
        batches = iter(loader)
        for _ in range(count // plan.accumulation):
            yield [next(batches) for _ in range(plan.accumulation)]
            step += 1
