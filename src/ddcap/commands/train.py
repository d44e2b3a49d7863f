"""`ddcap train`: recipes to a model folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ddcap.commands.progress import progress_bar
from ddcap.errors import TrainingInterruptedError


def add_parsers(commands: Any) -> None:
    """Add the command to an argparse subparsers object."""
    train = commands.add_parser(
        "train",
        help="train a model from a recipe, or from several in turn",
        usage="ddcap train RECIPE [RECIPE ...] [section.key=value ...] [--resume]",
    )
    train.add_argument("recipe", help="YAML file, see recipes/")
    train.add_argument(
        "more",
        nargs="*",
        metavar="recipe or section.key=value",
        help="recipes that go on from the one before, and settings to change in all of them",
    )
    train.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint of training.output"
    )
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from ddcap.processes import leave_together
    from ddcap.recipe.file import load_recipe
    from ddcap.training.checkpoint import list_checkpoints
    from ddcap.training.loop import train  # says what to install where accelerate is missing
    from accelerate import PartialState  # isort: skip

    overrides = [argument for argument in options.more if "=" in argument]
    paths = [options.recipe, *(argument for argument in options.more if "=" not in argument)]
    recipes = [load_recipe(path, overrides) for path in paths]  # a mistake in the last shows before the first
    try:
        for recipe in recipes:
            # of several, those that were not reached before start now
            begun = bool(list_checkpoints(Path(recipe.training.output)))
            folder = train(
                recipe,
                resume=options.resume and (begun or len(recipes) == 1),
                progress_bar=lambda shards: progress_bar(shards, len(shards), "features"),
            )
            if PartialState().is_main_process:
                print(folder)
    except TrainingInterruptedError as error:
        if PartialState().is_main_process:
            print(f"ddcap: {error}", file=sys.stderr)
        return leave_together(error.status)
    return leave_together(0)
