"""Logs of a training: a progress bar, `log.jsonl`, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ddcap.training.loss import Losses, Share
from ddcap.training.weights_and_biases import WeightsAndBiases

LOG_NAME = "log.jsonl"


class Journal:
    """Collects running means on the device and writes them every `log_every` steps.

    Args:
        output: the run's folder.
        log_every: steps between two lines.
        first_step: steps already done.
        total_steps: steps in all.
        active: False writes nothing (every process but the main one).
        mean: a tensor of this process to its mean over all of them.
        wandb: gets the same numbers as TensorBoard; None: nothing goes there.
    """

    def __init__(
        self,
        output: Path,
        log_every: int,
        first_step: int,
        total_steps: int,
        *,
        active: bool,
        mean: Callable[[Tensor], Tensor] = lambda mine: mine,
        wandb: WeightsAndBiases | None = None,
    ) -> None:
        self._mean = mean
        self._log_every = log_every
        self._sums: dict[str, Tensor] = {}
        self._step_sums: dict[str, Tensor] = {}  # of the step that is being computed
        self._count = 0
        self._since = time.monotonic()
        self._file = (output / LOG_NAME).open("a", encoding="utf-8") if active else None
        self._board = _tensorboard(output) if active else None
        self._wandb = wandb
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not active or not Console(stderr=True).is_terminal,
        )
        self._task = self._bar.add_task("train", total=total_steps, completed=first_step, note="")

    def __enter__(self) -> Journal:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish(failed=error is not None)

    def add(self, losses: Losses, share: Share) -> None:
        """Add the losses of one part of a step; nothing is read back from the device here."""
        values = {
            "loss": losses.token.detach() * share.words,
            "length_loss": losses.length.detach() * share.images,
        }
        for name, value in values.items():
            self._step_sums[name] = self._step_sums.get(name, torch.zeros_like(value)) + value

    def step(self, step: int, learning_rate: float, gradient_norm: Tensor, *, is_taken: bool = True) -> None:
        """Count a finished step; write a line when one is due. A step that was not taken adds no numbers."""
        if is_taken:
            self._count += 1
            for name, value in {**self._step_sums, "gradient_norm": gradient_norm}.items():
                self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._step_sums = {}
        self._bar.update(self._task, completed=step)
        if step % self._log_every or not self._count:
            return
        seconds = time.monotonic() - self._since
        sums = self._mean(torch.stack([value.float() for value in self._sums.values()])).tolist()
        line = {name: round(value / self._count, 5) for name, value in zip(self._sums, sums, strict=True)}
        self.write(
            step, "train", {**line, "learning_rate": learning_rate, "steps_per_second": self._count / seconds}
        )
        self._bar.update(self._task, note=f"loss {line['loss']:.3f}")
        self._sums, self._count, self._since = {}, 0, time.monotonic()

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Write one line to `log.jsonl`, and its numbers to TensorBoard and Weights & Biases."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        figures = {
            f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)
        }
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(step, figures)
        if kind == "validation":
            self._since = time.monotonic()  # do not count the validation as training time


def _tensorboard(output: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None  # log.jsonl holds the same numbers
    return SummaryWriter(str(output / "tensorboard"))
