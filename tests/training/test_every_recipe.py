"""Every shipped recipe trains for a few steps: its own settings but for the sizes, on real classes."""

from pathlib import Path

import pytest

from ddcap.captioner import Captioner
from ddcap.model.config import read_config
from ddcap.recipe import load_recipe
from ddcap.training.loop import train

RECIPES = Path(__file__).parents[2] / "recipes"
PATHS = sorted(path for path in RECIPES.rglob("*.yaml") if not path.stem.startswith(("plan", "tagger")))
PAPER = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem.startswith(("coco", "pretrain")))


def places_for(recipe, tmp_path, small_photos, captions_json, tagger_folder):
    """Where a recipe's data and output are, for a test."""
    places = [f"data.root={small_photos[0].parent}", f"data.json={captions_json}", "data.images=."]
    places += ["data.long_captions=truncate", f"training.output={tmp_path / 'run'}"]
    if recipe.data.cache is not None:
        places.append(f"data.cache={tmp_path / 'cache'}")
    if recipe.data.text is not None:
        (tmp_path / "captions.txt").write_text("A cat is there .\nTwo people stand near a wall .\n")
        places.append(f"data.text={tmp_path / 'captions.txt'}")
    if recipe.encoder.concepts:
        (tmp_path / "text.json").write_text('[["A cat is there .", "A dark cat"], ["Two people stand ."]]')
        text = tmp_path / "text.json"
        places += [
            f"data.beside=[{{path: {text}}}]",
            f"data.beside_captions={recipe.data.captions_per_image}",
        ]
        places += [f"encoder.tagger={tagger_folder}", "encoder.concepts=4"]
    return places


def sizes_of(folder):
    """Settings that are those of a model to go on from."""
    theirs = read_config(folder)
    same = {"model": ("width", "layers", "heads", "projection_hidden", "length_hidden")}
    same["encoder"] = ("kind", "name", "image_size", "fit")
    return [
        f"{section}.{name}={getattr(getattr(theirs, section), name)}"
        for section, names in same.items()
        for name in names
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path for path in PATHS if path.stem not in PAPER and not path.stem.endswith("_coco")],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_every_recipe_trains(
    path,
    tmp_path,
    small_photos,
    captions_json,
    tagger_folder,
    tiny_model_folder,
    tiny_ar_folder,
    small_sizes,
):
    recipe = load_recipe(path)
    changes = [*small_sizes, *places_for(recipe, tmp_path, small_photos, captions_json, tagger_folder)]
    changes.append(f"training.batch_size={2 * recipe.data.captions_per_image}")
    if recipe.model.init is not None and recipe.encoder.concepts:  # it goes on from a stage of its own kind
        before = [*changes, "model.init=null", f"training.output={tmp_path / 'before'}"]
        changes.append(f"model.init={train(load_recipe(path, before))}")
    elif recipe.model.init is not None:
        folder = tiny_model_folder if recipe.model.kind == "diffusion" else tiny_ar_folder
        changes += [*sizes_of(folder), f"model.init={folder}"]
    trained = train(load_recipe(path, changes))
    assert Captioner.from_pretrained(trained)(small_photos[0])[0].length >= 1


def test_the_papers_recipes_are_tested_elsewhere():
    text = Path(__file__).with_name("test_paper_recipes.py").read_text()
    assert PAPER and all(f'small("{name}"' in text or f'"{name}"' in text for name in PAPER)
