"""A run goes on with the recipe it was started with: what of it may change, and that nothing else has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddcap.errors import RecipeError
from ddcap.recipe import Recipe
from ddcap.settings import RETIRED, dump_settings

MAY_CHANGE = frozenset(
    {
        # how long, and what is written where
        *("training.epochs", "training.output", "training.log_every"),
        *("training.checkpoint_every", "training.keep_checkpoints"),
        # what is asked in between
        *("training.validate_every", "training.validate_images", "training.sample_captions"),
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
    for section, settings in RETIRED.items():
        for name, at in settings.items():
            was = before.get(section, {}).get(name, at)
            if was != at:
                wrong[f"{section}.{name}"] = (was, "no more")
    if wrong:
        clauses = [f"{name} was {old} and is now {new}" for name, (old, new) in wrong.items()]
        raise RecipeError(
            f"{output}: --resume goes on with the recipe the run was started with, but "
            f"{', '.join(clauses)}; take that back, or start another run by training.output=..."
        )


def _flat(sections: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, settings in sections.items():
        for name, value in settings.items():
            yield f"{section}.{name}", value
