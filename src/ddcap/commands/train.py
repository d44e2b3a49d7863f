"""`ddcap train`, `ddcap tagger`, `ddcap distill`: from recipes to models and to captions to learn from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ddcap.commands.arguments import progress_bar
from ddcap.errors import TrainingInterruptedError


def _add_tagger(commands: Any) -> None:
    tagger = commands.add_parser(
        "tagger",
        help="train the tagger that sees concepts, before a model that uses them",
        usage="ddcap tagger RECIPE [section.key=value ...]",
    )
    tagger.add_argument("recipe", help="YAML file with the sections data, encoder and tagger")
    tagger.add_argument("changes", nargs="*", metavar="section.key=value", help="settings to change")
    tagger.set_defaults(run=_tagger)


def _tagger(options: argparse.Namespace) -> int:
    from ddcap.recipe import load_recipe
    from ddcap.training.tagger import train_tagger

    recipe = load_recipe(options.recipe, options.changes)
    print(train_tagger(recipe, progress_bar=lambda shards: progress_bar(shards, len(shards), "features")))
    return 0


def _add_distill(commands: Any) -> None:
    distill = commands.add_parser(
        "distill",
        help="let trained models caption the training images, for a diffusion model to learn",
        usage="ddcap distill RECIPE [section.key=value ...] --teacher MODEL [MODEL ...] --output FILE",
    )
    distill.add_argument("recipe", help="YAML file; its sections data and encoder are read")
    distill.add_argument("changes", nargs="*", metavar="section.key=value", help="settings to change")
    distill.add_argument(
        "--teacher",
        nargs="+",
        required=True,
        metavar="MODEL",
        help="models; with data.folds=N, each captions the fold it was not trained on "
        "(data.held_out=0, 1, ... in this order)",
    )
    distill.add_argument(
        "--beams",
        type=int,
        default=5,
        help="beams of an autoregressive model, lengths of a diffusion model (default: 5)",
    )
    distill.add_argument(
        "--keep",
        type=int,
        default=3,
        help="keep this many captions per image, those that agree best with people's (default: 3)",
    )
    distill.add_argument(
        "--careful",
        action="store_true",
        help="leave out captions that name things people do not, or that have a slip of English",
    )
    distill.add_argument(
        "--min-cider",
        type=float,
        default=0.0,
        metavar="POINTS",
        help="leave out captions whose CIDEr against people's is lower (default: 0)",
    )
    distill.add_argument("--output", required=True, help="write the captions to this Karpathy JSON")
    distill.set_defaults(run=_distill)


def _distill(options: argparse.Namespace) -> int:
    from ddcap.errors import DataError, RecipeError
    from ddcap.files import write_json
    from ddcap.recipe import load_recipe
    from ddcap.training.distillation import distill, load_teachers

    recipe = load_recipe(options.recipe, options.changes)
    if not 1 <= options.keep <= options.beams:
        raise RecipeError(f"--keep {options.keep}: choose between 1 and --beams {options.beams}")
    if not Path(options.output).absolute().parent.is_dir():
        raise DataError(f"{options.output}: its folder does not exist; create it, or choose another path")
    teachers = load_teachers(options.teacher, recipe.data.folds)
    images = distill(
        recipe,
        teachers,
        beams=options.beams,
        keep=options.keep,
        careful=options.careful,
        min_cider=options.min_cider,
        progress=lambda work, count: progress_bar(work, count, "captions"),
    )
    write_json(
        options.output,
        {
            "images": images,
            "teachers": options.teacher,
            "beams": options.beams,
            "careful": options.careful,
            "min_cider": options.min_cider,
        },
    )
    first = [image["sentences"][0]["cider"] for image in images]
    print(
        f"{len(images)} images, CIDEr of the best caption {sum(first) / len(first):.1f} against people's",
        file=sys.stderr,
    )
    print(options.output)
    return 0


def add_parsers(commands: Any) -> None:
    """Add the commands to an argparse subparsers object."""
    _add_tagger(commands)
    _add_distill(commands)
    train = commands.add_parser(
        "train",
        help="train a model from a recipe, or from several recipes in turn",
        usage="ddcap train RECIPE [RECIPE ...] [section.key=value ...] [--resume]",
    )
    train.add_argument("recipe", help="YAML file; see recipes/")
    train.add_argument(
        "more",
        nargs="*",
        metavar="recipe or section.key=value",
        help="recipes that continue from the one before, and settings to change in all recipes",
    )
    train.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint in training.output"
    )
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from ddcap.machine import leave_together
    from ddcap.recipe import load_recipe
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
