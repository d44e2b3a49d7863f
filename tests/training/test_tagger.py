"""From captioned photographs to a tagger, and on to a model that sees concepts; small but all real."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ddcap import Captioner
from ddcap.data.batches import Draw
from ddcap.data.concepts import NO_CONCEPT, ConceptVocabulary
from ddcap.data.records import load_records
from ddcap.errors import CheckpointError, DDCapError, RecipeError
from ddcap.model.concepts import Tagger
from ddcap.recipe import TaggerSettings, load_recipe
from ddcap.training.loop import train
from ddcap.training.start import prepare
from ddcap.training.tagger import Evidence, fit, predict, train_tagger
from ddcap.training.tags import StoredTags


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
def test_a_model_learns_from_images_concepts_and_text_and_captions_a_photograph(
    kind, tagger_recipe, tagger_folder, tmp_path, photos
):
    path = model_recipe(tagger_recipe, tagger_folder, tmp_path, kind)
    folder = train(load_recipe(path))
    lines = [json.loads(line) for line in (tmp_path / kind / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    captioner = Captioner.from_pretrained(folder, precision="float32")
    assert captioner.model.vocabulary.words == ConceptVocabulary.load(tagger_folder).words
    concepts = captioner.features([photos[0]]).concepts
    assert concepts.ids.shape == (1, 4)
    assert captioner(photos[0])[0].text
    again = Captioner.from_pretrained(folder, precision="float32").features([photos[0]])
    assert torch.equal(again.concepts.ids, concepts.ids)
    seen = captioner.concepts(photos[0])
    assert [concept.word for concept in seen] == [
        captioner.model.vocabulary.words[number]
        for number in concepts.ids[0].tolist()
        if number != NO_CONCEPT
    ]
    assert captioner(photos[:2], concepts="cat, wall")[1].text
    assert captioner.infill(photos[0], "a ___ dog", concepts="+dog, -cat").text
    with pytest.raises(DDCapError, match="does not know 'xylophone'"):
        captioner(photos[0], concepts="xylophone")


def test_a_model_that_goes_on_sees_by_the_tagger_that_the_recipe_names(
    tagger_recipe, tagger_folder, tmp_path
):
    path = model_recipe(tagger_recipe, tagger_folder, tmp_path, "diffusion")
    first = train(load_recipe(path))
    other = train_tagger(load_recipe(tagger_recipe, ["tagger.seed=1", f"tagger.output={tmp_path / 'other'}"]))
    changes = [f"model.init={first}", f"encoder.tagger={other}", f"training.output={tmp_path / 'second'}"]
    begun = prepare(load_recipe(path, changes), resume=False).model
    wanted, before = (load_file(folder / "encoder.safetensors") for folder in (other, tagger_folder))
    name = "tagger.hidden.weight"
    assert not torch.equal(wanted[name], before[name])
    assert torch.equal(begun.encoder.state_dict()[name], wanted[name].float())
    trained = Captioner.from_pretrained(first).model
    assert torch.equal(begun.concept_embedding.levels, trained.concept_embedding.levels)
    words = ConceptVocabulary.load(tagger_folder).words
    ConceptVocabulary(words[::-1], {}).save(other)
    with pytest.raises(RecipeError, match=r"encoder\.tagger=.* concepts differ .* model\.init="):
        prepare(load_recipe(path, changes), resume=False)
    ConceptVocabulary(words[:2], {}).save(other)
    with pytest.raises(CheckpointError, match=r"concepts\.json has 2 words, the tagger .* run ddcap tagger"):
        prepare(load_recipe(path, changes), resume=False)


def test_text_beside_images_needs_a_tagger(tagger_recipe, tagger_folder, tmp_path):
    path = model_recipe(tagger_recipe, tagger_folder, tmp_path, "diffusion")
    with pytest.raises(RecipeError, match=r"data\.beside: .* set encoder\.tagger"):
        prepare(load_recipe(path, ["encoder.tagger=null", "encoder.concepts=0"]), resume=False)


def test_a_missing_tagger_is_one_line(tagger_recipe, tagger_folder, tmp_path):
    path = model_recipe(tagger_recipe, tagger_folder, tmp_path, "diffusion")
    with pytest.raises(CheckpointError, match="run ddcap tagger first"):
        prepare(load_recipe(path, [f"encoder.tagger={tmp_path}"]), resume=False)


@pytest.mark.parametrize("setting", ["concepts", "class_words"])
def test_a_tagger_says_what_it_lacks(tagger_recipe, setting):
    with pytest.raises(RecipeError, match=rf"tagger\.{setting} is not set"):
        train_tagger(load_recipe(tagger_recipe, [f"tagger.{setting}=null"]))


def test_training_images_are_tagged_by_others(tagger_recipe, tagger_folder):
    recipe = load_recipe(tagger_recipe)
    records = load_records(recipe.data.json, recipe.data.root, "train")
    tags = StoredTags(tagger_folder / "tags.safetensors", records)
    draws = [Draw(record, (0,), view, 0) for record in range(len(records)) for view in (0, 1, 7)]
    read = tags.read(draws)
    assert read.ids.shape == (3 * len(records), 4)
    assert torch.equal(read.ids[0::3], read.ids[2::3])  # a view that was not tagged has the plain one's
    by_id = {record.image_id: row for row, record in enumerate(records)}
    turned = StoredTags(tagger_folder / "tags.safetensors", records[::-1])
    first = turned.read([Draw(len(records) - 1, (0,), 0, 0)])
    assert torch.equal(first.ids[0], read.ids[3 * by_id[records[0].image_id]])


def test_fewer_images_than_a_batch_are_one_batch():
    seen, named = torch.randn(5, 1, 1004), torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 2)
    seen[:, 0, 0] = 4 * named[:, 0]
    data = Evidence(seen, named, torch.ones_like(named, dtype=torch.bool))
    like = Tagger(1004, 2, classes_at=4, width=8)
    settings = TaggerSettings(batch_size=256, epochs=60, fewest=1, width=8, dropout=0, dropout_in=0)
    found = predict(fit(like, [(0, 0, 0.5)], data, settings), seen)[:, 0]
    assert (found.argmax(dim=1) == named.argmax(dim=1)).all()
