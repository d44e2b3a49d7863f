"""The state of a training between two steps, and how it is saved."""

from __future__ import annotations

import dataclasses
import logging
from functools import cached_property
from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ddcap.data.batches import CaptionBatch
from ddcap.data.caption_data import CaptionData
from ddcap.data.steps import StepPlan
from ddcap.errors import CheckpointError, MissingExtraError, RecipeError, TrainingError
from ddcap.model.image_encoder import ImageFeatures
from ddcap.model.kinds import CaptioningModel
from ddcap.recipe import Recipe
from ddcap.settings import dump_settings
from ddcap.training.checkpoint import Checkpoint, Progress, list_checkpoints, load_checkpoint, save_checkpoint
from ddcap.training.journal import Journal
from ddcap.training.objective import Losses, caption_loss
from ddcap.training.optimizer import build_optimizer
from ddcap.training.self_critical import CiderReward, self_critical_loss
from ddcap.training.setup import ProgressBar, prepare
from ddcap.training.validation import Processes, Validation, validate

try:
    from accelerate import Accelerator
    from accelerate.utils import gather_object
except ImportError:
    raise MissingExtraError("training", "train") from None

logger = logging.getLogger("ddcap")


class Run:
    """A training: its inputs, model, optimizer, progress and journal.

    Args:
        recipe: all settings.
        resume: go on from the newest checkpoint.
        progress_bar: wraps the feature cache's missing shards.
    """

    def __init__(self, recipe: Recipe, *, resume: bool, progress_bar: ProgressBar) -> None:
        settings = recipe.training
        # without being told, several processes on a machine without a GPU would each train for themselves
        on_cpu = not torch.accelerator.is_available()
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")  # see `precision`
        processes = self.accelerator.num_processes
        images = _images_per_step(recipe, processes)
        self.inputs = prepare(
            recipe, resume=resume, progress=progress_bar, share=(self.accelerator.process_index, processes)
        )
        self.recipe = recipe = self.inputs.recipe
        self.plan = StepPlan(
            settings.seed, images, processes, self.accelerator.process_index, settings.gradient_accumulation
        )
        per_epoch = self.plan.steps_per_epoch(self.inputs.train_data)
        self.total_steps = max(1, round(settings.epochs * per_epoch))
        self.warmup_steps = round(settings.warmup_epochs * per_epoch)
        if self.warmup_steps > self.total_steps:
            logger.warning(
                "training.warmup_epochs=%g is over training.epochs=%g: the rate never reaches its peak",
                settings.warmup_epochs,
                settings.epochs,
            )
        self.validate_every = max(1, round(settings.validate_every * per_epoch))
        model = self.inputs.model
        optimizer = build_optimizer(model, settings)
        decay = settings.ema_decay
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
        self.progress = Progress(0, None, None, dump_settings(recipe))
        if resume:
            self._restore(optimizer)
        self.wrapped, self.optimizer = self.accelerator.prepare(model, optimizer)
        if self.average is not None:
            self.average.to(self.accelerator.device).eval()
        self.journal = Journal(
            self.inputs.output,
            settings.log_every,
            self.progress.step,
            self.total_steps,
            active=self.accelerator.is_main_process,
            mean=lambda mine: self.accelerator.reduce(mine, "mean"),
        )

    def precision(self) -> torch.autocast:
        """The autocast of the forward pass.

        Accelerate's own is a global of the process: a second training with another precision would fail.
        """
        kind = self.accelerator.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.recipe.training.bf16)

    def losses(
        self, batch: CaptionBatch, features: ImageFeatures | None, generator: torch.Generator
    ) -> Losses:
        """The training's objective: the likelihood of human captions, or the score of drawn ones, or both."""
        if self.recipe.training.objective == "likelihood":
            return self._likelihood(batch, features, generator)
        assert features is not None  # the recipe sees to it
        settings = self.recipe.self_critical
        losses = self_critical_loss(
            self.wrapped,
            batch,
            features,
            self.reward,
            settings,
            self.recipe.decoding,
            end_id=self.inputs.tokenizer.end_id,
            generator=generator,
        )
        if not settings.likelihood:
            return losses
        human = self._likelihood(batch, features, generator)
        token, length = (settings.likelihood * loss for loss in (human.token, human.length))
        return dataclasses.replace(losses, token=losses.token + token, length=losses.length + length)

    def _likelihood(
        self, batch: CaptionBatch, features: ImageFeatures | None, generator: torch.Generator
    ) -> Losses:
        settings = self.recipe.training
        return caption_loss(
            self.wrapped,
            batch,
            features,
            generator=generator,
            image_free_probability=settings.image_free_probability,
            label_smoothing=settings.label_smoothing,
        )

    @cached_property
    def reward(self) -> CiderReward:
        """What self-critical training is rewarded by."""
        data = self.inputs.train_data
        assert isinstance(data, CaptionData)  # the recipe sees to it
        return CiderReward(data.records, self.inputs.tokenizer)

    @property
    def best_folder(self) -> Path:
        """Where the best model so far lies."""
        return self.inputs.output / "best"

    @property
    def shipped_model(self) -> CaptioningModel:
        """The weights that are validated and kept: the moving average if there is one."""
        if self.average is None:
            return self.inputs.model
        model = self.average.module
        assert isinstance(model, CaptioningModel)
        return model

    def save_and_validate(self, done: int) -> None:
        """What is due after `done` steps. Save first, then validate what was saved; the best is kept."""
        settings = self.recipe.training
        validation_due = done % self.validate_every == 0 or done == self.total_steps
        if validation_due or done % settings.checkpoint_every == 0:
            self.save(done)
        if validation_due:
            result = self._validate()
            if self.accelerator.is_main_process:
                self._keep_if_best(result)
                self._save()  # the best score so far belongs to the checkpoint, too
            self.accelerator.wait_for_everyone()

    def save(self, done: int) -> None:
        """Write a checkpoint after `done` steps; the main process does, the others wait."""
        self.progress = dataclasses.replace(self.progress, step=done)
        if self.accelerator.is_main_process:
            self._save()
        self.accelerator.wait_for_everyone()

    def _validate(self) -> Validation:
        settings, accelerator = self.recipe.training, self.accelerator
        return validate(
            self.shipped_model.eval(),
            self.inputs.val_data,
            self.inputs.tokenizer,
            self.recipe.decoding,
            images=settings.validate_images,
            samples=settings.sample_captions,
            device=accelerator.device,
            processes=Processes(
                accelerator.num_processes,
                accelerator.process_index,
                gather=lambda mine: list(gather_object([mine])),
            ),
        )

    def _keep_if_best(self, result: Validation) -> None:
        model, step = self.shipped_model, self.progress.step
        self.journal.write(step, "validation", dataclasses.asdict(result))
        best = self.progress.best_score
        if best is None or result.score > best:
            self.progress = dataclasses.replace(self.progress, best_score=result.score, best_step=step)
            model.save_pretrained(self.best_folder)
            self.inputs.tokenizer.save(self.best_folder)

    def _save(self) -> None:
        checkpoint = Checkpoint(
            progress=self.progress,
            weights=self.inputs.model.stored_state(),
            average=self.shipped_model.stored_state(),
            optimizer=self.optimizer.state_dict(),
        )
        try:
            save_checkpoint(self.inputs.output, checkpoint, self.recipe.training.keep_checkpoints)
        except TrainingError as error:
            if self.progress.step == self.total_steps:
                raise
            logger.warning("%s; the training goes on and tries again at the next checkpoint", error)

    def _restore(self, optimizer: torch.optim.Optimizer) -> None:
        path = list_checkpoints(self.inputs.output)[-1]
        checkpoint = load_checkpoint(path)
        try:
            self.inputs.model.load_stored_state(checkpoint.weights)
            optimizer.load_state_dict(checkpoint.optimizer)
            if self.average is not None:
                self.shipped_model.load_stored_state(checkpoint.average)
                self.average.n_averaged.fill_(checkpoint.progress.step)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{path}: made with other model settings ({reason}); "
                "resume with the recipe it was started with"
            ) from None
        self.progress = dataclasses.replace(checkpoint.progress, recipe=dump_settings(self.recipe))


def _images_per_step(recipe: Recipe, processes: int) -> int:
    images = recipe.training.batch_size // recipe.data.captions_per_image
    accumulation = recipe.training.gradient_accumulation
    if images % (processes * accumulation):
        raise RecipeError(
            f"training.batch_size={recipe.training.batch_size} makes {images} pictures a step, which "
            f"{processes} processes and {accumulation} accumulation parts cannot share evenly; change one"
        )
    return images
