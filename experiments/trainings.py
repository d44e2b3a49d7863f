"""The trainings of an ablation: those that are missing are run, half-finished ones go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddcap.captioner import Captioner
from ddcap.files import write_text
from ddcap.machine import Processes
from ddcap.training.checkpoint import list_checkpoints
from ddcap.training.journal import LOG_NAME
from ddcap.training.loop import train
from experiments.plan import Trial, training_settings

_FINISHED = "finished.json"


def trained(trial: Trial, say: Callable[[str], None], device: str = "cpu") -> Captioner:
    """The best model (by CIDEr on val) of a trial's training, which is run, or gone on with, if need be."""
    train_if_missing(trial, say)
    return Captioner.from_pretrained(Path(trial.recipe.training.output) / "best", device)


def train_if_missing(trial: Trial, say: Callable[[str], None]) -> None:
    """Run a trial's training, or go on with it, unless it is finished."""
    if not _is_finished(trial):
        _train(trial, say, resume=_has_begun(trial))


def train_together(trials: Sequence[Trial], say: Callable[[str], None], processes: Processes) -> None:
    """Run the trainings that are missing, all processes each of them."""
    for trial in trials:
        # one of them looks: when the others do, it may have gone on already
        is_finished, has_begun = processes.gather((_is_finished(trial), _has_begun(trial)))[0]
        if not is_finished:
            _train(trial, say, resume=has_begun, is_main=processes.index == 0)


def _is_finished(trial: Trial) -> bool:
    marker = Path(trial.recipe.training.output) / _FINISHED
    settings = training_settings(trial.recipe)
    return marker.is_file() and bool(json.loads(marker.read_text(encoding="utf-8")) == settings)


def _has_begun(trial: Trial) -> bool:
    return bool(list_checkpoints(Path(trial.recipe.training.output)))


def _train(trial: Trial, say: Callable[[str], None], *, resume: bool, is_main: bool = True) -> None:
    output = Path(trial.recipe.training.output)
    if is_main:
        say(f"{'going on with' if resume else 'starting'} training {output.name}")
    # rows may share it: whichever of them asks first, the same one's decoding chooses the weights
    train(replace(trial.recipe, decoding=trial.chosen_by or trial.recipe.decoding), resume=resume)
    if is_main:
        settings = json.dumps(training_settings(trial.recipe))
        write_text(output / _FINISHED, settings + "\n")


def training_summary(output: str | Path) -> dict[str, Any]:
    """Read what the log of a training tells: steps, hours of training proper, and CIDEr on val as it grew."""
    steps, hours = 0, 0.0
    curve: list[dict[str, float]] = []
    for entry in _entries(Path(output) / LOG_NAME):
        if entry["kind"] == "train":
            hours += (entry["step"] - steps) / entry["steps_per_second"] / 3600
            steps = entry["step"]
        elif entry["kind"] == "validation":
            curve.append({"step": entry["step"], "CIDEr": entry["cider"], "loss": entry["loss"]})
    return {"steps": max([steps, *(int(point["step"]) for point in curve)]), "hours": hours, "val": curve}


def _entries(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, without those of steps that were lost and computed again after a resumption."""
    kept: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["kind"] == "train":
            while kept and kept[-1]["step"] >= entry["step"]:
                kept.pop()
        kept.append(entry)
    return kept
