"""A training between two steps: what was read, how parts are weighed, what is saved when."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from ddcap.data.batches import StepPlan
from ddcap.diffusion import linear_schedule
from ddcap.errors import CheckpointError, DataError, MissingExtraError, RecipeError, TrainingError
from ddcap.machine import ALONE, Processes, computing, join_processes
from ddcap.model.ddcap import DDCapModel
from ddcap.model.loading import TorchModel
from ddcap.recipe import Recipe
from ddcap.settings import dump_settings
from ddcap.training.checkpoint import (
    Progress,
    changes,
    list_checkpoints,
    load_checkpoint,
    save_best,
    save_checkpoint,
    save_progress,
)
from ddcap.training.journal import Journal
from ddcap.training.loss import Noise, Objective, draw_noise
from ddcap.training.start import ProgressBar, prepare
from ddcap.training.state import TrainingState
from ddcap.training.validation import FEWEST_TO_CHOOSE_BY, Validation, validate
from ddcap.training.weights_and_biases import WeightsAndBiases, check_installed

try:
    from accelerate import Accelerator, DistributedType
except ImportError:
    raise MissingExtraError("training", "train") from None

# Images that a training could not read: it goes on without them and says so.

logger = logging.getLogger("ddcap")

_MOST_NAMED = 20
_MOST_IN_A_ROW = 20


class UnreadableImages:
    """Names each image once, up to a number of them, and counts all.

    Args:
        steps_per_epoch: of the training.
        processes: this one and those that read other images.
    """

    def __init__(self, steps_per_epoch: float, processes: Processes = ALONE) -> None:
        self._reasons: set[str] = set()
        self._latest = ""
        self._processes = processes
        self._in_a_row, self._most = 0, min(_MOST_IN_A_ROW, math.ceil(steps_per_epoch))

    def note(self, reasons: Iterable[str]) -> None:
        """Take what a batch could not read, a line each; an image may come again in every epoch."""
        for reason in reasons:
            self._latest = reason
            if reason not in self._reasons:
                self._reasons.add(reason)
                if len(self._reasons) <= _MOST_NAMED:
                    logger.warning("skipped: %s", reason)

    def count_step(self, *, is_blank: bool) -> None:
        """Count a step; one that is blank has no image in any process.

        Raises:
            DataError: if so many in a row are blank that this is no matter of single images.
        """
        self._in_a_row = self._in_a_row + 1 if is_blank else 0
        if self._in_a_row == self._most:
            reason = next(filter(None, self._processes.gather(self._latest)))
            raise DataError(
                f"{reason}; no image of {self._most} steps in a row could be read; check the data set with "
                "`ddcap data check`"
            )

    def report(self) -> None:
        """Say how many there were in all processes; each of them has to ask."""
        everyones = set().union(*self._processes.gather(self._reasons))
        if everyones and self._processes.index == 0:
            logger.warning("%d images could not be read and were skipped", len(everyones))


# The state of a training between two steps, and how it is saved.

_OTHER_WRAPPINGS = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class Run:
    """A training: its inputs, model, optimizer, progress and journal.

    Args:
        recipe: all settings.
        resume: go on from the newest checkpoint.
        progress_bar: wraps the feature cache's missing shards.
    """

    def __init__(self, recipe: Recipe, *, resume: bool, progress_bar: ProgressBar) -> None:
        settings = recipe.training
        if settings.wandb is not None:
            check_installed()
        # without being told, several processes on a machine without a GPU would each train for themselves
        on_cpu = not torch.accelerator.is_available()
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")  # see `precision`
        self.processes = processes = join_processes()
        if self.accelerator.distributed_type in _OTHER_WRAPPINGS:
            kind = self.accelerator.distributed_type.value
            raise RecipeError(
                f"accelerate: ddcap does not support {kind}; launch without it, "
                "and set training.fsdp=true to shard the weights"
            )
        images = _images_per_step(recipe, processes.count)
        self.inputs = prepare(
            recipe, self.accelerator.device, processes, resume=resume, progress=progress_bar
        )
        self.recipe = recipe = self.inputs.recipe
        self.plan = StepPlan(
            settings.seed, images, processes.count, processes.index, settings.gradient_accumulation
        )
        per_epoch = self.plan.steps_per_epoch(self.inputs.train_data)
        self.beside_plan: StepPlan | None = None
        if self.inputs.beside_data is not None:
            groups = recipe.data.beside_captions // recipe.data.captions_per_image
            self.beside_plan = dataclasses.replace(self.plan, seed=settings.seed + 1, images_per_step=groups)
        self.total_steps = max(1, round(settings.epochs * per_epoch))
        self.warmup_steps = round(settings.warmup_epochs * per_epoch)
        if self.warmup_steps > self.total_steps:
            logger.warning(
                "training.warmup_epochs=%g is over training.epochs=%g: the learning rate never reaches its "
                "peak",
                settings.warmup_epochs,
                settings.epochs,
            )
        self._validate_every = max(1.0, settings.validate_every * per_epoch)
        self._validate_at = {max(1, round(epoch * per_epoch)) for epoch in settings.validate_at}
        self.unreadable = UnreadableImages(per_epoch, processes)
        self._tell_of_few_images()
        self.progress = Progress(0, None, None, dump_settings(recipe), captions=self.inputs.captions)
        self.saved: int | None = None
        self.state = self._start(resume=resume)
        self.journal = Journal(
            self.inputs.output,
            settings.log_every,
            self.progress.step,
            self.total_steps,
            active=self.accelerator.is_main_process,
            mean=lambda mine: self.accelerator.reduce(mine, "mean"),
            wandb=self._wandb(resume=resume),
        )

    def _wandb(self, *, resume: bool) -> WeightsAndBiases | None:
        project = self.recipe.training.wandb
        if project is None or not self.accelerator.is_main_process:
            return None
        return WeightsAndBiases(project, self.inputs.output, dump_settings(self.recipe), resume=resume)

    def _tell_of_few_images(self) -> None:
        """Say which images are not learned from, and what `best` means, where they are few."""
        names = [record.image_id for record in self.inputs.val_data.records]
        if self.accelerator.is_main_process and len(names) < FEWEST_TO_CHOOSE_BY:
            logger.warning(
                "used for validation, not for training: %s; too few to choose the best model, so "
                "best/ holds the newest one",
                ", ".join(names),
            )

    def precision(self) -> torch.autocast:
        """The autocast of the forward pass.

        Accelerate's own is a global of the process: a second training with another precision would fail.
        """
        return computing(self.accelerator.device, bfloat16=self.recipe.training.bf16)

    def noise(self, step: int) -> Noise | None:
        """Draw a step's random numbers for all its images, whoever computes them; None if it needs none."""
        model, data = self.inputs.model, self.recipe.data
        if not isinstance(model, DDCapModel) and not self.recipe.training.image_free_probability:
            return None
        return draw_noise(
            torch.Generator().manual_seed(step_seed(self.recipe.training.seed, step)),
            linear_schedule(model.config.diffusion, model.config.vocabulary_size),
            images=self.plan.images_per_step
            + (self.beside_plan.images_per_step if self.beside_plan is not None else 0),
            captions_per_image=data.captions_per_image,
            length=model.config.model.max_length,
            self_conditioning=model.config.model.self_conditioning,
            judge_share=self.recipe.training.judge_share if model.config.model.judge == "shared" else 0.0,
        )

    def first_image(self, part: int) -> int:
        """Return the first image of a part among all that the step reads, captions without images last."""
        if part < self.plan.accumulation or self.beside_plan is None:
            return self.plan.first_image(part)
        return self.plan.images_per_step + self.beside_plan.first_image(part - self.plan.accumulation)

    @property
    def best_folder(self) -> Path:
        """The folder of the best model so far."""
        return self.inputs.output / "best"

    def validation_is_due(self, done: int) -> bool:
        """Return True if the model is validated after `done` steps: as the recipe says, and in the end."""
        if self._validate_at:
            return done == self.total_steps or done in self._validate_at
        times = round(done / self._validate_every)
        return done == self.total_steps or (times > 0 and done == round(times * self._validate_every))

    def save_is_due(self, done: int) -> bool:
        """Return True if a checkpoint is written after `done` steps; what is validated is saved first."""
        return self.validation_is_due(done) or done % self.recipe.training.checkpoint_every == 0

    def validation_is_missing(self) -> bool:
        """Return True if the run to resume ended between its newest checkpoint and that one's validation."""
        step = self.progress.step
        is_missing = self.progress.validated_step != step or not self.best_folder.exists()
        return self.processes.gather(step > 0 and self.validation_is_due(step) and is_missing)[0]

    def validate(self, between: Callable[[], None]) -> None:
        """Validate what was saved last; the best is kept.

        Args:
            between: is called by all processes between batches of images.
        """
        settings = self.recipe.training
        with self.state.shipped_model() as model:
            result = validate(
                model,
                self.inputs.val_data,
                self.inputs.tokenizer,
                self.recipe.decoding,
                images=settings.validate_images,
                samples=settings.sample_captions,
                device=self.accelerator.device,
                processes=self.processes,
                between=between,
                judge_only=settings.judge_only,
            )
            if self.accelerator.is_main_process:
                self.unreadable.note(result.unreadable)
                self._keep_if_best(model, result)
        self.accelerator.wait_for_everyone()

    def save(self, done: int) -> None:
        """Write a checkpoint after `done` steps, unless there is one; the main process does, the others wait.

        `saved` is then the step of the newest that could be written.

        Raises:
            TrainingError: if the last of a training cannot be written.
        """
        if self.progress.step == done:
            return
        self.progress = dataclasses.replace(self.progress, step=done)
        checkpoint = self.state.to_checkpoint(self.progress)
        if self.accelerator.is_main_process:
            with self._unless_the_disk_is_full():
                save_checkpoint(self.inputs.output, checkpoint, self.recipe.training.keep_checkpoints)
                self.saved = done
        self.accelerator.wait_for_everyone()

    def what_is_saved(self) -> str:
        """For a message at the end of a run that is not done."""
        if self.saved == self.progress.step:
            return f"saved in {self.inputs.output}; go on with --resume"
        if self.saved is None:
            return "nothing could be saved"
        return f"which could not be saved; go on from step {self.saved} in {self.inputs.output} with --resume"

    def _keep_if_best(self, model: TorchModel, result: Validation) -> None:
        step, best = self.progress.step, self.progress.best_score
        self.journal.write(step, "validation", dataclasses.asdict(result))
        is_best = best is None or result.score is None or result.score > best
        with self._unless_the_disk_is_full():
            if is_best or not self.best_folder.exists():
                save_best(self.best_folder, model, self.inputs.tokenizer)
                self.progress = dataclasses.replace(self.progress, best_score=result.score, best_step=step)
            self.progress = dataclasses.replace(self.progress, validated_step=step)
            save_progress(self.inputs.output, self.progress)  # belongs to the checkpoint, too

    @contextlib.contextmanager
    def _unless_the_disk_is_full(self) -> Iterator[None]:
        """A training outlives what could not be written, but for the last of it."""
        try:
            yield
        except TrainingError as error:
            if self.progress.step == self.total_steps:
                raise
            logger.warning("%s; training continues and tries again at the next checkpoint", error)

    def _start(self, *, resume: bool) -> TrainingState:
        """The model with its optimizer, from the start or from the newest checkpoint."""
        path = list_checkpoints(self.inputs.output)[-1] if resume else None
        checkpoint = load_checkpoint(path) if path is not None else None
        objective = Objective(self.inputs.model, self.recipe.training)
        try:
            state = TrainingState(objective, self.recipe.training, self.accelerator, checkpoint)
        except (RuntimeError, ValueError) as error:
            if path is None:
                raise
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{path}: written with other model settings ({reason}); "
                "resume with the recipe that started the run"
            ) from None
        if checkpoint is not None:
            self._go_on_from(checkpoint.progress)
        return state

    def _go_on_from(self, progress: Progress) -> None:
        changed = changes(progress.recipe, self.recipe)
        self.progress = dataclasses.replace(
            progress, recipe=dump_settings(self.recipe), captions=self.inputs.captions
        )
        self.saved = progress.step
        if "training.validate_images" in changed:  # a score of other images says nothing about the next one
            before, now = changed["training.validate_images"]
            logger.warning(
                "training.validate_images was %s and is now %s: choosing the best model again", before, now
            )
            self.progress = dataclasses.replace(self.progress, best_score=None)


def step_seed(seed: int, step: int, process: int = 0) -> int:
    """A step's randomness is a function of its number, so that resuming needs no random state."""
    return (seed * 1_000_003 + step) * 1_009 + process


def _images_per_step(recipe: Recipe, processes: int) -> int:
    images = recipe.training.batch_size // recipe.data.captions_per_image
    accumulation = recipe.training.gradient_accumulation
    if images % (processes * accumulation):
        raise RecipeError(
            f"training.batch_size={recipe.training.batch_size} makes {images} images per step, which "
            f"{processes} processes and {accumulation} accumulation parts cannot divide evenly; change one"
        )
    return images
