"""What several tests of training share."""

import json

import pytest
import yaml

from ddcap.data.concepts import ConceptVocabulary
from ddcap.recipe import load_recipe
from ddcap.training.tagger import train_tagger

CONCEPTS = ["cat", "cup", "coffee", "woman", "rocket", "dog", "people", "wall", "light", "koala"]


@pytest.fixture(scope="session")
def tagger_recipe(made_once, small_photos, captions_json):
    def write(folder):
        folder.mkdir()
        write_tagger_recipe(folder, small_photos, captions_json)

    return made_once("tagger_recipe", write) / "tagger.yaml"


def write_tagger_recipe(folder, photos, captions_json):
    """Write the recipe with all that it names."""
    ConceptVocabulary(CONCEPTS, {"cats": "cat", "person": "people"}).save(folder)
    names = {"281": {"words": {"cat": 0.9}}, "105": {"words": {"koala": 0.9, "bear": 0.5}}}
    (folder / "class_words.json").write_text(json.dumps(names))
    labelled = [
        {"filename": photo.name, "set": "a", "labels": [label]}
        for photo, label in zip(
            photos, ["koala", "dog", "cat", "wall", "a koala", "cup", "cats"], strict=True
        )
    ]
    (folder / "labelled.json").write_text(json.dumps({"images": labelled}))
    recipe = {
        "data": {
            "root": str(photos[0].parent),
            "json": str(captions_json),
            "cache": str(folder / "cache"),
            "views": 2,
            "captions_per_image": 2,
            "workers": 0,
        },
        "encoder": {"kind": "efficientnet_lite", "image_size": 32, "concepts": 4},
        "tagger": {
            "concepts": str(folder / "concepts.json"),
            "class_words": str(folder / "class_words.json"),
            "labelled": str(folder / "labelled.json"),
            "output": str(folder / "out"),
            "epochs": 30,
            "batch_size": 2,
            "folds": 2,
            "fewest": 1,
        },
    }
    (folder / "tagger.yaml").write_text(yaml.safe_dump(recipe))


@pytest.fixture(scope="session")
def tagger_folder(tagger_recipe, made_once):
    """A trained tagger with its tags of the training images."""
    return made_once(
        "tagger", lambda folder: train_tagger(load_recipe(tagger_recipe, [f"tagger.output={folder}"]))
    )


@pytest.fixture
def recipe_file(tmp_path, small_photos, captions_json, tiny_clip_folder):
    """A tiny but complete training on real photographs: trainable CLIP, dropout, image-free training, EMA."""
    return write_recipe(tmp_path, small_photos, captions_json, tiny_clip_folder)


@pytest.fixture(scope="session")
def shared_recipe(made_once, small_photos, captions_json, tiny_clip_folder):
    """The same, for runs that several tests look at; give each an output of its own."""

    def write(folder):
        folder.mkdir()
        write_recipe(folder, small_photos, captions_json, tiny_clip_folder)

    return made_once("recipe", write) / "recipe.yaml"


def write_recipe(folder, photos, captions_json, clip):
    """Write the recipe; its output is `run` in the same folder."""
    recipe = {
        "data": {
            "root": str(photos[0].parent),
            "json": str(captions_json),
            "captions_per_image": 2,
            "views": 3,
            "workers": 0,
        },
        "encoder": {
            "kind": "clip",
            "name": str(clip),
            "image_size": 32,
            "fit": "crop",
            "trainable": True,
        },
        "tokenizer": {"vocabulary_size": 120},
        "model": {"width": 16, "layers": 1, "heads": 2, "projection_hidden": 8, "length_hidden": 8},
        "training": {
            "output": str(folder / "run"),
            "epochs": 4,
            "warmup_epochs": 1,
            "batch_size": 8,
            "learning_rate": 1.0e-2,
            "ema_decay": 0.5,
            "checkpoint_every": 2,
            "validate_every": 2,
            "log_every": 1,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
