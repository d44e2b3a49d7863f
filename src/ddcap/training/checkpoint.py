"""Checkpoints: self-describing, atomic, exact to resume from; a frozen encoder is left out.

A checkpoint is a folder `checkpoints/step_00001500/` with the trained weights and their moving average
(safetensors), the optimizer (`weights_only`) and a small JSON, whole or not there. A run goes on with the
recipe it was started with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddcap.data.records import CaptionedImage
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import CheckpointError, RecipeError, TrainingError, remedy
from ddcap.files import remove_unfinished, replacing_folder, write_text
from ddcap.model.checkpoint_files import load_pickle
from ddcap.model.loading import TorchModel
from ddcap.recipe import Recipe
from ddcap.settings import RETIRED, dump_settings, parse_settings

# A run goes on with the recipe it was started with: what of it may change, and that nothing else has.

MAY_CHANGE = frozenset(
    {
        # how long, and what is written where
        *("training.epochs", "training.output", "training.log_every", "training.wandb"),
        *("training.checkpoint_every", "training.keep_checkpoints"),
        # what is asked in between
        *("training.validate_every", "training.validate_at"),
        *("training.validate_images", "training.sample_captions"),
        # how a step is computed, which is the same step
        *("training.gradient_accumulation", "training.gradient_checkpointing"),
        *("training.fsdp", "training.compile"),
        # where the data are and who reads them
        *("data.root", "data.images", "data.cache", "data.shard_cache", "data.workers"),
        "encoder.tagger",
        "encoder.stored",  # no setting of a person's: it follows from the others
    }
)


def changes(before: Mapping[str, Any], recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Settings that are not what they were, by their dotted names: (before, now).

    Args:
        before: an earlier recipe as plain values; a setting that it does not know had its default.
        recipe: the one of now.
    """
    known = {**dict(_flat(dump_settings(Recipe()))), **dict(_flat(before))}
    now = dict(_flat(dump_settings(recipe)))
    return {name: (known[name], value) for name, value in now.items() if known[name] != value}


def check_unchanged(before: Mapping[str, Any], recipe: Recipe, output: Path) -> None:
    """See that a run which goes on changes only what it may.

    Args:
        before: the recipe of its newest checkpoint, as plain values.
        recipe: the one it is to go on with.
        output: the run's folder, for the message.

    Raises:
        RecipeError: with both values of whatever else has changed.
    """
    wrong = {
        name: both
        for name, both in changes(before, recipe).items()
        if name not in MAY_CHANGE and not name.startswith("tagger.")
    }
    was = dict(_flat(before))
    wrong.update({name: (was[name], "no more") for name, at in RETIRED.items() if was.get(name, at) != at})
    if wrong:
        clauses = [f"{name} was {old} and is now {new}" for name, (old, new) in wrong.items()]
        raise RecipeError(
            f"{output}: --resume needs the recipe that started the run, but "
            f"{', '.join(clauses)}; undo that, or start another run with training.output=..."
        )


def caption_digest(records: Iterable[CaptionedImage]) -> str:
    """A short text that changes with what a training learns from: images by name, captions, their order.

    Args:
        records: of all splits; where their files lie does not count.
    """
    digest = hashlib.sha256()
    for record in records:
        digest.update(repr((record.image_id, record.path.name, record.split, record.captions)).encode())
    return digest.hexdigest()[:16]


def check_same_captions(before: str | None, now: str, output: Path, source: str) -> None:
    """See that a run goes on with the captions that it started with.

    Args:
        before: `caption_digest` of its newest checkpoint; None of a run of an earlier version.
        now: of the data that it is to go on with.
        output: the run's folder, for the message.
        source: where the captions are from, for the message.

    Raises:
        RecipeError: if they differ.
    """
    if before not in (None, now):
        raise RecipeError(
            f"{output}: --resume needs the captions that started the run, but {source} has others now; "
            "undo that, or start another run with training.output=..."
        )


def _flat(sections: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, settings in sections.items():
        for name, value in settings.items():
            yield f"{section}.{name}", value


_REMEDY = "delete this folder to resume from the previous checkpoint"
_FILES = ("progress.json", "weights.safetensors", "average.safetensors", "optimizer.pt")


@dataclass(frozen=True)
class Progress:
    """The progress of a training.

    Attributes:
        step: optimiser steps done.
        best_score: best validation score so far (higher is better); None before the first validation, or if
            there are too few images to choose by.
        best_step: the step of the model that is kept as the best.
        recipe: the recipe as plain values.
        validated_step: the step of the last validation that was finished.
        captions: `caption_digest` of the data; None of a run of an earlier version.
    """

    step: int
    best_score: float | None
    best_step: int | None
    recipe: dict[str, object]
    validated_step: int | None = None
    captions: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory."""

    progress: Progress
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, object]


def checkpoint_folder(output: Path) -> Path:
    """Return the folder in which a run keeps its checkpoints."""
    return output / "checkpoints"


def save_checkpoint(output: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, then delete all but the newest `keep`.

    Raises:
        TrainingError: if it cannot be written; the earlier ones are still there.
    """
    folder = checkpoint_folder(output)
    final = folder / f"step_{checkpoint.progress.step:08d}"
    remove_unfinished(folder, older_than=0)  # a run has one writer
    with _told_if_full(final), replacing_folder(final) as temporary:
        save_file(_contiguous(checkpoint.weights), temporary / "weights.safetensors")
        save_file(_contiguous(checkpoint.average), temporary / "average.safetensors")
        torch.save(checkpoint.optimizer, temporary / "optimizer.pt")
        write_text(temporary / "progress.json", _to_json(checkpoint.progress))
    for old in list_checkpoints(output)[:-keep]:
        shutil.rmtree(old)
    return final


def save_progress(output: Path, progress: Progress) -> None:
    """Write the progress of a checkpoint anew, for what its validation found; without one nothing is written.

    Raises:
        TrainingError: if it cannot be written.
    """
    path = checkpoint_folder(output) / f"step_{progress.step:08d}" / "progress.json"
    if path.exists():
        with _told_if_full(path):
            write_text(path, _to_json(progress))


def save_best(folder: Path, model: TorchModel, tokenizer: CaptionTokenizer) -> None:
    """Write the best model so far.

    Raises:
        TrainingError: if it cannot be written; one that was there before is whole.
    """
    with _told_if_full(folder):
        model.save_pretrained(folder)
        tokenizer.save(folder)


def list_checkpoints(output: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted(checkpoint_folder(output).glob("step_*"))


def load_progress(path: Path) -> Progress:
    """Read the progress of a checkpoint, without its weights.

    Raises:
        CheckpointError: if that cannot be read.
    """
    try:
        return Progress(**json.loads((path / "progress.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: damaged or truncated ({error}); delete this folder to resume from the previous "
            "checkpoint"
        ) from None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder.

    Raises:
        CheckpointError: if a file is missing, damaged or cut short.
    """
    for name in _FILES:
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name}: missing; {_REMEDY}")
    try:
        values = json.loads((path / "progress.json").read_text(encoding="utf-8"))
        return Checkpoint(
            progress=parse_settings(Progress, values, "progress.json"),
            weights=load_file(path / "weights.safetensors"),
            average=load_file(path / "average.safetensors"),
            optimizer=_state(path / "optimizer.pt"),
        )
    except CheckpointError:
        raise
    except (SafetensorError, ValueError, TypeError, RuntimeError, EOFError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: damaged or truncated ({reason}); {_REMEDY}") from None


@contextlib.contextmanager
def _told_if_full(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # each library tells of a full disk in its way
        reason, advice = " ".join(str(error).split()), remedy(error, "free disk space")
        raise TrainingError(
            f"{path}: cannot be written ({reason}); {advice}; earlier checkpoints are kept"
        ) from None


def _state(path: Path) -> dict[str, object]:
    state = load_pickle(path, _REMEDY)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: damaged or truncated (contains no named state); {_REMEDY}")
    return state


def _to_json(progress: Progress) -> str:
    return json.dumps(asdict(progress), indent=1)


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous() for name, value in state.items()}
