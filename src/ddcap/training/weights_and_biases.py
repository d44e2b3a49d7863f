"""A training's figures at Weights & Biases, beside `log.jsonl` and TensorBoard."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from ddcap.errors import MissingExtraError, TrainingError
from ddcap.files import write_text

ID_NAME = "wandb_id.txt"


def check_installed() -> None:
    """Raise `MissingExtraError` if the package is missing, without its import, which takes a second."""
    if importlib.util.find_spec("wandb") is None:
        raise MissingExtraError("training.wandb", "wandb")


class WeightsAndBiases:
    """A run of Weights & Biases, which a resumed training continues.

    Args:
        project: the run's project.
        output: the training's folder; it gives the run its name and keeps its id.
        settings: of the training, as plain values.
        resume: continue the run of `output`, if it has one.

    Raises:
        TrainingError: if the run cannot be started, for instance since nobody is logged in.
    """

    def __init__(self, project: str, output: Path, settings: dict[str, Any], *, resume: bool) -> None:
        import wandb

        kept = output / ID_NAME
        try:
            self._run = wandb.init(
                project=project,
                name=output.name,
                dir=output,
                config=settings,
                id=kept.read_text(encoding="utf-8").strip() if resume and kept.exists() else None,
                resume="allow",
                settings=wandb.Settings(console="off"),  # what goes to standard error stays there
            )
        except wandb.Error as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")
            raise TrainingError(
                f"training.wandb={project}: {reason}; log in, set WANDB_MODE=offline, or remove the setting"
            ) from None
        write_text(kept, f"{self._run.id}\n")
        self._run.define_metric("*", step_metric="step")  # after a resumption steps may come again

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Add the figures of a step."""
        self._run.log({"step": step, **figures})

    def finish(self, *, failed: bool) -> None:
        """Send what is left, and say how the training ended."""
        self._run.finish(exit_code=int(failed))
