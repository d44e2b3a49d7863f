"""Training, in the order in which things happen: read, noise, predict, score, step, log, save, validate."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ddcap.data.batches import CaptionBatch
from ddcap.data.steps import steps_beside, training_steps
from ddcap.errors import TrainingInterruptedError
from ddcap.recipe import Recipe
from ddcap.training.divergence import DivergenceGuard
from ddcap.training.interruption import Interruption, Stopped
from ddcap.training.optimizer import learning_rate_at, set_learning_rate
from ddcap.training.run import Run, step_seed
from ddcap.training.setup import ProgressBar
from ddcap.training.share import shares

logger = logging.getLogger("ddcap")


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
        logger.warning("%d steps were left out, their gradients were not finite", guard.skipped)
    return run.best_folder


def _take_step(run: Run, step: int, parts: list[CaptionBatch], guard: DivergenceGuard) -> None:
    """Noise, predict, score, step, log."""
    settings, accelerator, state = run.recipe.training, run.accelerator, run.state
    # dropout draws from the global generator; noise is the same for all processes
    torch.manual_seed(step_seed(settings.seed, step, run.processes.index))
    noise = run.noise(step)
    learning_rate = learning_rate_at(step, run.total_steps, run.warmup_steps, settings.learning_rate)
    set_learning_rate(state.optimizer, learning_rate)
    state.wrapped.train()
    step_shares, has_pictures = shares(parts, accelerator)
    for number, (part, share) in enumerate(zip(parts, step_shares, strict=True)):
        run.unreadable.note(part.unreadable)
        batch, first = part.to(accelerator.device), run.first_image(number)
        mine = noise and noise.of([first + place for place in batch.places], accelerator.device)
        with state.exchange_gradients(enabled=number + 1 == len(parts)):
            with run.precision():
                losses = state.wrapped(batch, mine)
            share.of(losses, settings.length_loss_weight).backward()
        run.journal.add(losses, share)
    run.unreadable.count_step(is_blank=not has_pictures)
    gradient_norm = state.clip_gradients(settings.gradient_clip)
    images = [image_id for part in parts for image_id in part.image_ids]
    is_taken = guard.allows(step + 1, gradient_norm, images) and has_pictures
    state.step(is_taken=is_taken)
    run.journal.step(step + 1, learning_rate, gradient_norm, is_taken=is_taken)
