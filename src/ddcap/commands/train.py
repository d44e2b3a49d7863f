"""`ddcap train`: a recipe to a model folder."""

from __future__ import annotations

import argparse
from typing import Any

from ddcap.commands.progress import progress_bar


def add_parsers(commands: Any) -> None:
    """Add the command to an argparse subparsers object."""
    train = commands.add_parser("train", help="train a model from a recipe")
    train.add_argument("recipe", help="YAML file, see recipes/")
    train.add_argument("overrides", nargs="*", help="settings to change: section.key=value")
    train.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint of training.output"
    )
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from ddcap.recipe_file import load_recipe
    from ddcap.training.loop import train

    recipe = load_recipe(options.recipe, options.overrides)
    folder = train(
        recipe,
        resume=options.resume,
        progress_bar=lambda shards: progress_bar(shards, len(shards), "features"),
    )
    print(folder)
    return 0
