"""From captioned photographs to a tagger, and from there to a model that sees concepts; small, but all real."""

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

from ddcap import Captioner
from ddcap.data.concepts import NO_CONCEPT, ConceptVocabulary
from ddcap.errors import CheckpointError, RecipeError
from ddcap.model.detector import CenterNet
from ddcap.recipe.file import load_recipe
from ddcap.training.loop import train
from ddcap.training.setup import prepare
from ddcap.training.tagger import train_tagger

WORDS = ["cat", "cup", "coffee", "woman", "rocket", "dog", "people", "wall", "light", "koala"]


@pytest.fixture(scope="session")
def tagger_recipe(tmp_path_factory, photos, captions_json):
    folder = tmp_path_factory.mktemp("tagger")
    ConceptVocabulary(WORDS, {"cats": "cat", "person": "people"}).save(folder)
    names = {"281": {"words": {"cat": 0.9}}, "105": {"words": {"koala": 0.9, "bear": 0.5}}}
    (folder / "class_words.json").write_text(json.dumps(names))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(CenterNet().state_dict(), folder / "detector.safetensors")
    labelled = [
        {"filename": photo.name, "set": "a", "labels": [label]}
        for photo, label in zip(photos, ["koala", "dog", "cat", "wall", "a koala", "cup", "cats"], strict=True)
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
        "encoder": {"kind": "efficientnet_lite", "image_size": 32, "detector_size": 64, "concepts": 4},
        "tagger": {
            "concepts": str(folder / "concepts.json"),
            "class_words": str(folder / "class_words.json"),
            "detector": str(folder / "detector.safetensors"),
            "labelled": str(folder / "labelled.json"),
            "output": str(folder / "out"),
            "epochs": 30,
            "batch_size": 2,
            "folds": 2,
            "fewest": 1,
        },
    }
    path = folder / "tagger.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="session")
def tagger_folder(tagger_recipe):
    return train_tagger(load_recipe(tagger_recipe))


def model_recipe(tagger_recipe, tagger_folder, tmp_path, kind):
    recipe = yaml.safe_load(tagger_recipe.read_text())
    text = tmp_path / "text.json"
    groups = [["A brown dog jumps .", "Two dogs on a wall"], ["A koala sleeps .", "A koala"]]
    text.write_text(json.dumps(groups * 5))
    recipe["encoder"]["tagger"] = str(tagger_folder)
    recipe["data"].update(beside=[{"path": str(text)}], beside_captions=4)
    recipe["tokenizer"] = {"vocabulary_size": 120}
    recipe["model"] = {"width": 16, "layers": 1, "heads": 2, "projection_hidden": 8}
    recipe["model"]["length_prediction"] = False
    recipe["training"] = {
        "output": str(tmp_path / kind),
        "epochs": 20,
        "warmup_epochs": 1,
        "batch_size": 8,
        "learning_rate": 1.0e-2,
        "length_loss_weight": 0,
        "image_free_probability": 0.4,
        "log_every": 1,
        "validate_every": 4,
    }
    recipe["decoding"] = {"guidance": 1, "length": 6}
    if kind == "autoregressive":
        recipe["model"].update(kind=kind, concentrated_attention=False)
        recipe["decoding"] = {"method": "left_to_right", "guidance": 1}
    path = tmp_path / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize("kind", ["diffusion", "autoregressive"])
def test_a_model_learns_from_pictures_concepts_and_text_and_captions_a_photograph(
    kind, tagger_recipe, tagger_folder, tmp_path, photos
):
    path = model_recipe(tagger_recipe, tagger_folder, tmp_path, kind)
    folder = train(load_recipe(path))
    lines = [json.loads(line) for line in (tmp_path / kind / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    captioner = Captioner.from_pretrained(folder, precision="float32")
    assert captioner.model.vocabulary.words == tuple(WORDS)
    concepts = captioner.features([photos[0]]).concepts
    assert concepts.ids.shape == (1, 4)
    assert captioner(photos[0])[0].text
    again = Captioner.from_pretrained(folder, precision="float32").features([photos[0]])
    assert torch.equal(again.concepts.ids, concepts.ids)
