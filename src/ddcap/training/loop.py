"""Training, in the order in which things happen: read, noise, predict, score, step, log, save, validate."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddcap.data.batches import CaptionBatch, steps_beside, training_steps
from ddcap.errors import TrainingError, TrainingInterruptedError
from ddcap.recipe import Recipe
from ddcap.training.loss import shares
from ddcap.training.run import Run, step_seed
from ddcap.training.start import ProgressBar
from ddcap.training.state import learning_rate_at, set_learning_rate

if TYPE_CHECKING:
    from accelerate import Accelerator


# SIGTERM and SIGINT end a training after the step it is in, with a checkpoint, instead of in the middle. A
# validation, before which all is saved, they end at once: schedulers soon kill what they have warned.

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
        """Let a signal stop the run at once, since all is saved; several processes agree in `check`.

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
        logger.warning("%s: saving, then stopping", self.signal.name)

    def _restore(self) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)  # type: ignore[arg-type]  # what signal.signal gave us
        self._before = {}


# A step whose gradient is not finite is not taken; several in a row end the training.

MOST_IN_A_ROW = 3


class DivergenceGuard:
    """Counts steps that were not taken.

    Attributes:
        skipped: steps left out since the start.
        in_a_row: steps left out since the last one that was taken.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self.in_a_row = 0

    def allows(self, step: int, gradient_norm: Tensor, image_ids: Sequence[str]) -> bool:
        """Return True if the step may be taken.

        The norm is that of all processes' gradients together, so all of them decide the same.

        Args:
            step: its number.
            gradient_norm: scalar, before clipping.
            image_ids: images of the step, to find the one that did it.

        Raises:
            TrainingError: at the last of MOST_IN_A_ROW steps with a norm that is no finite number.
        """
        if bool(gradient_norm.isfinite()):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        shown = ", ".join(image_ids[:8]) + (", ..." if len(image_ids) > 8 else "")
        if self.in_a_row == MOST_IN_A_ROW:
            raise TrainingError(
                f"step {step}: the gradient is not finite for the {MOST_IN_A_ROW}rd time in a row (images "
                f"{shown}); check these images, or start another run with a lower training.learning_rate "
                "(model.init=... continues from this run's best model)"
            )
        logger.warning("step %d: skipped, its gradient is not finite (images %s)", step, shown)
        return False


def train(recipe: Recipe, *, resume: bool = False, progress_bar: ProgressBar = iter) -> Path:
    """Train the model a recipe describes.

    Args:
        recipe: all settings.
        resume: go on from the newest checkpoint under `training.output`.
        progress_bar: wraps the feature cache's missing shards.

    Returns:
        Folder of the best model, ready for `Captioner.from_pretrained`.

    Raises:
        DDCapError: if the data, the settings or a checkpoint are not usable.
        TrainingError: if the gradient is not finite three times in a row.
        TrainingInterruptedError: if SIGTERM or SIGINT ended it; the step it was in is done and saved, a
            validation that it was in comes first when the run goes on.
    """
    run = Run(recipe, resume=resume, progress_bar=progress_bar)
    guard = DivergenceGuard()
    span = run.progress.step, run.total_steps
    steps = training_steps(run.inputs.train_data, run.plan, *span)
    if run.inputs.beside_data is not None and run.beside_plan is not None:
        steps = steps_beside(steps, training_steps(run.inputs.beside_data, run.beside_plan, *span))
    with run.journal, Interruption(run.accelerator) as interruption:
        try:
            if run.validation_is_missing():
                with interruption.at_once():
                    run.validate(interruption.check)
            for step, parts in enumerate(steps, start=run.progress.step):
                _take_step(run, step, parts, guard)
                done = step + 1
                # after a step that was left out the weights may be what is wrong
                is_sound = guard.in_a_row == 0 or done == run.total_steps
                stopped_by = interruption.agreed()
                if stopped_by is not None or (is_sound and run.save_is_due(done)):
                    run.save(done)
                if stopped_by is not None:
                    raise Stopped(stopped_by)
                if is_sound and run.validation_is_due(done):
                    with interruption.at_once():
                        run.validate(interruption.check)
        except Stopped as stop:
            raise TrainingInterruptedError(
                f"stopped by {stop.by.name} after step {run.progress.step} of {run.total_steps}, "
                f"{run.what_is_saved()}",
                128 + stop.by,
            ) from None
    run.unreadable.report()
    if guard.skipped:
        logger.warning("%d steps were skipped, their gradients were not finite", guard.skipped)
    return run.best_folder


def _take_step(run: Run, step: int, parts: list[CaptionBatch], guard: DivergenceGuard) -> None:
    """Noise, predict, score, step, log."""
    settings, accelerator, state = run.recipe.training, run.accelerator, run.state
    # dropout draws from the global generator; noise is the same for all processes
    torch.manual_seed(step_seed(settings.seed, step, run.processes.index))
    noise = run.noise(step)
    learning_rate = learning_rate_at(
        step, run.total_steps, run.warmup_steps, settings.learning_rate, settings.schedule
    )
    set_learning_rate(state.optimizer, learning_rate)
    state.train()
    step_shares, has_images = shares(parts, accelerator)
    for number, (part, share) in enumerate(zip(parts, step_shares, strict=True)):
        run.unreadable.note(part.unreadable)
        batch, first = part.to(accelerator.device), run.first_image(number)
        mine = noise and noise.of([first + place for place in batch.places], accelerator.device)
        with state.exchange_gradients(enabled=number + 1 == len(parts)):
            with run.precision():
                losses = state.wrapped(batch, mine)
            share.of(losses, settings.length_loss_weight).backward()
        run.journal.add(losses, share)
    run.unreadable.count_step(is_blank=not has_images)
    gradient_norm = state.clip_gradients(settings.gradient_clip)
    images = [image_id for part in parts for image_id in part.image_ids]
    is_taken = guard.allows(step + 1, gradient_norm, images) and has_images
    state.step(is_taken=is_taken)
    run.journal.step(step + 1, learning_rate, gradient_norm, is_taken=is_taken)
