"""Every shipped recipe trains for a few steps: its own settings but for the sizes, on real classes."""

from pathlib import Path

import pytest

from ddcap.captioner import Captioner
from ddcap.model.stored_model import read_config
from ddcap.recipe.file import load_recipe
from ddcap.training.loop import train

RECIPES = Path(__file__).parents[2] / "recipes"
PATHS = sorted(path for path in RECIPES.rglob("*.yaml") if not path.stem.startswith("plan"))
PAPER = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem.startswith(("coco", "pretrain")))
SMALL = ["model.width=16", "model.layers=1", "model.heads=2", "model.projection_hidden=8"]
SMALL += ["model.length_hidden=8", "encoder.image_size=32"]


def changes_for(recipe, tmp_path, photos, captions_json, models):
    """What makes a recipe small and gives it data, encoder and the model it goes on from."""
    batch = 2 * recipe.data.captions_per_image
    changes = [f"data.root={photos[0].parent}", f"data.json={captions_json}", "data.images=."]
    changes += ["data.workers=0", "data.long_captions=truncate", f"training.batch_size={batch}"]
    changes += ["training.epochs=1", "training.warmup_epochs=0.5", "training.validate_images=1"]
    changes += [f"training.output={tmp_path / 'run'}"]
    if recipe.data.cache is not None:
        changes.append(f"data.cache={tmp_path / 'cache'}")
    if recipe.data.text is not None:
        (tmp_path / "captions.txt").write_text("A cat is there .\nTwo people stand near a wall .\n")
        changes.append(f"data.text={tmp_path / 'captions.txt'}")
    if recipe.model.init is None:
        changes += SMALL
    else:
        theirs = read_config(models[recipe.model.kind])
        sizes = {"model": ("width", "layers", "heads"), "encoder": ("kind", "name", "image_size", "fit")}
        changes += [
            f"{section}.{name}={getattr(getattr(theirs, section), name)}"
            for section, names in sizes.items()
            for name in names
        ]
        changes += [f"model.init={models[recipe.model.kind]}"]
        changes += [
            "encoder.trainable_from=0"
        ]  # counts EfficientNet's blocks; this model's encoder is a CLIP
    return changes


@pytest.mark.parametrize(
    "path",
    [path for path in PATHS if path.stem not in PAPER and not path.stem.endswith("_coco")],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_it_trains(path, tmp_path, photos, captions_json, tiny_model_folder, tiny_twin_folder):
    models = {"diffusion": tiny_model_folder, "autoregressive": tiny_twin_folder}
    changes = changes_for(load_recipe(path), tmp_path, photos, captions_json, models)
    folder = train(load_recipe(path, changes))
    assert Captioner.from_pretrained(folder)(photos[0])[0].length >= 1


def test_the_papers_recipes_are_tested_elsewhere():
    text = Path(__file__).with_name("test_paper_recipes.py").read_text()
    assert PAPER and all(f'small("{name}"' in text or f'"{name}"' in text for name in PAPER)
