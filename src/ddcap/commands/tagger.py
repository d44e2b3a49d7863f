"""`ddcap tagger`: learn which concepts pictures show."""

from __future__ import annotations

import argparse
from typing import Any

from ddcap.commands.progress import progress_bar


def add_parsers(commands: Any) -> None:
    """Add the command to an argparse subparsers object."""
    tagger = commands.add_parser(
        "tagger",
        help="train what sees concepts in pictures, before a model that uses it",
        usage="ddcap tagger RECIPE [section.key=value ...]",
    )
    tagger.add_argument("recipe", help="YAML file with the sections data, encoder and tagger")
    tagger.add_argument("changes", nargs="*", metavar="section.key=value", help="settings to change")
    tagger.set_defaults(run=_tagger)


def _tagger(options: argparse.Namespace) -> int:
    from ddcap.recipe.file import load_recipe
    from ddcap.training.tagger import train_tagger

    recipe = load_recipe(options.recipe, options.changes)
    print(train_tagger(recipe, progress_bar=lambda shards: progress_bar(shards, len(shards), "features")))
    return 0
