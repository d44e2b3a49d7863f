"""The trainings of an ablation: those that are missing are run, half-finished ones go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddcap.ablation.plan import Trial, training_settings
from ddcap.captioner import Captioner
from ddcap.training.checkpoint import list_checkpoints
from ddcap.training.journal import LOG_NAME
from ddcap.training.loop import train
from ddcap.training.setup import ProgressBar

_FINISHED = "finished.json"


def trained(trial: Trial, say: Callable[[str], None], progress_bar: ProgressBar = iter) -> Captioner:
    """The best model (by CIDEr on val) of a trial's training, which is run, or gone on with, if need be."""
    output = Path(trial.recipe.training.output)
    marker = output / _FINISHED
    settings = training_settings(trial.recipe)
    if not marker.is_file() or json.loads(marker.read_text(encoding="utf-8")) != settings:
        resume = bool(list_checkpoints(output))
        say(f"{'going on with' if resume else 'starting'} training {output.name}")
        train(trial.recipe, resume=resume, progress_bar=progress_bar)
        marker.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    return Captioner.from_pretrained(output / "best")


def training_summary(output: str | Path) -> dict[str, Any]:
    """What the log of a training tells: steps, hours of training proper, and CIDEr on val as it grew."""
    steps, hours = 0, 0.0
    curve: list[dict[str, float]] = []
    for line in (Path(output) / LOG_NAME).read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["kind"] == "train":
            hours += (entry["step"] - steps) / entry["steps_per_second"] / 3600
            steps = entry["step"]
        elif entry["kind"] == "validation":
            curve.append({"step": entry["step"], "CIDEr": entry["cider"], "loss": entry["loss"]})
    return {"steps": max([steps, *(int(point["step"]) for point in curve)]), "hours": hours, "val": curve}
