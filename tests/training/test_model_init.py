import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ddcap.captioner import Captioner
from ddcap.commands import main
from ddcap.data.concepts import NO_CONCEPT
from ddcap.errors import CheckpointError, RecipeError
from ddcap.model.loading import load_model
from ddcap.recipe import load_recipe
from ddcap.training.loop import train
from ddcap.training.start import prepare

CAPTIONS = {
    "astronaut": "an astronaut in an orange suit smiles before a flag",
    "chelsea": "a tabby cat looks to the side",
    "coffee": "a cup of coffee on a wooden table",
    "china": "a temple with a curved roof among trees",
    "flower": "a purple flower with a yellow heart",
    "rocket": "a rocket stands on its pad at night",
}


@pytest.fixture
def own_images(photos, tmp_path):
    """Photographs with a caption each in a text file."""
    folder = tmp_path / "images"
    folder.mkdir()
    for photo in photos:
        if photo.stem in CAPTIONS:
            shutil.copy(photo, folder)
            (folder / f"{photo.stem}.txt").write_text(CAPTIONS[photo.stem])
    assert len(list(folder.glob("*.txt"))) >= 5
    return folder


@pytest.fixture
def recipe_file(own_images, tiny_model_folder, tmp_path):
    recipe = {
        "data": {"json": str(own_images), "workers": 0, "val_share": 0.2, "long_captions": "truncate"},
        "model": {"init": str(tiny_model_folder)},
        "training": {"output": str(tmp_path / "run"), "epochs": 2, "warmup_epochs": 1, "batch_size": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_training_starts_from_the_weights_of_the_other_model(recipe_file, tiny_model_folder):
    inputs = prepare(load_recipe(recipe_file), resume=False)
    theirs = load_file(tiny_model_folder / "model.safetensors")
    assert inputs.model.stored_state().keys() == theirs.keys()
    assert all(torch.equal(inputs.model.stored_state()[name], value) for name, value in theirs.items())
    assert inputs.tokenizer.to_json() == Captioner.from_pretrained(tiny_model_folder).tokenizer.to_json()
    assert inputs.recipe.model.width == 32


def test_default_goes_on_with_the_concepts_of_its_detector(own_images, tmp_path):
    (own_images / "broken.jpg").write_bytes(b"no image")
    (own_images / "broken.txt").write_text("a cup")
    changes = [f"data.json={own_images}", f"data.cache={tmp_path / 'cache'}", "data.val_share=0.2"]
    recipe = load_recipe("recipes/finetune.yaml", [*changes, f"training.output={tmp_path / 'run'}"])
    inputs = prepare(recipe, resume=False)
    captioner = Captioner.from_pretrained(runtime="torch")
    for data in (inputs.train_data, inputs.val_data):
        draws = [replace(draw, view=0) for draw in data.draws(0, 0, 1)]
        batch = data[draws]
        read = [data.records[draws[place].record].path for place in batch.places]
        assert read and "broken" not in {path.stem for path in read}
        wanted = captioner.features(read).concepts
        # the cache rounds the summary to 16 bits, so concepts that are as likely may change places
        assert (batch.concepts.ids == wanted.ids).float().mean() > 0.8
        torch.testing.assert_close(batch.concepts.confidences, wanted.confidences, atol=0.01, rtol=0)
    tags, draws = inputs.train_data.concepts, inputs.train_data.draws(0, 0, 1)
    readable = next(one for one in draws if inputs.train_data.records[one.record].path.stem != "broken")
    plain, mirrored = (tags.read([replace(readable, view=view)]) for view in (0, 1))
    assert not torch.equal(plain.confidences, mirrored.confidences)
    for number, record in enumerate(inputs.train_data.records):
        if record.path.stem == "broken":  # unless it is kept for validation
            assert (tags.read([replace(readable, record=number)]).ids == NO_CONCEPT).all()


def test_the_new_model_stands_by_itself_and_resumes(recipe_file, tiny_model_folder):
    folder = train(load_recipe(recipe_file, ["training.epochs=1"]))
    longer = train(load_recipe(recipe_file), resume=True)
    assert folder == longer
    captioner = Captioner.from_pretrained(folder)
    assert captioner.model.config.model.init is None
    before = load_file(tiny_model_folder / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_encoder_of_an_initial_model_can_be_trained(recipe_file):
    folder = train(load_recipe(recipe_file, ["encoder.trainable=true", "training.epochs=1"]))
    assert any(name.startswith("encoder.") for name in load_file(folder / "model.safetensors"))
    # frozen from now on, its features can be cached, and its weights go on travelling with the model
    output, cache = folder.parent / "again", folder.parent / "cache"
    changes = [f"model.init={folder}", f"encoder.name={load_model(folder).config.encoder.name}"]
    recipe = load_recipe(recipe_file, [*changes, f"data.cache={cache}", f"training.output={output}"])
    again = load_file(train(recipe) / "model.safetensors")
    before = load_file(folder / "model.safetensors")
    theirs = [key for key in before if key.startswith("encoder.")]
    assert theirs and all(torch.equal(before[key], again[key]) for key in theirs)
    config = load_model(output / "best").config.encoder
    assert config.stored and not config.trainable


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("model.width=96", r"model\.width=96: the model in model\.init=\S+ has 32"),
        ("diffusion.steps=10", r"diffusion\.steps=10"),
        ("encoder.image_size=64", r"encoder\.image_size=64"),
        ("tokenizer.vocabulary_size=100", "has its own tokenizer"),
        ("decoding.length=21", "length=21"),
    ],
)
def test_another_architecture_is_one_line(recipe_file, change, reason):
    with pytest.raises(RecipeError, match=reason) as caught:
        prepare(load_recipe(recipe_file, [change]), resume=False)
    assert "\n" not in str(caught.value)


def test_a_missing_model_is_one_line(recipe_file):
    with pytest.raises(CheckpointError, match="no such model"):
        prepare(load_recipe(recipe_file, ["model.init=./nowhere"]), resume=False)


def test_recipes_in_turn_and_resumed_where_they_stopped(recipe_file, tmp_path, capsys):
    second = tmp_path / "second.yaml"
    values = yaml.safe_load(recipe_file.read_text())
    values["model"]["init"] = str(tmp_path / "run" / "best")
    values["training"]["output"] = str(tmp_path / "second")
    second.write_text(yaml.safe_dump(values))
    command = ["train", str(recipe_file), str(second), "training.epochs=1"]
    assert main(command) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "run" / "best"),
        str(tmp_path / "second" / "best"),
    ]
    shutil.rmtree(tmp_path / "second")
    assert main([*command, "--resume"]) == 0  # the first is done, the second starts
    assert (tmp_path / "second" / "best" / "model.safetensors").is_file()
    # overrides hold for all recipes, and a slip is seen before anything runs
    assert main([*command, "training.epoch=2"]) == 1
    assert "did you mean" in capsys.readouterr().err


@pytest.fixture
def unlike_the_defaults(tiny_model_folder, tmp_path):
    """A model with dropout and decoding of its own."""
    folder = tmp_path / "unlike"
    shutil.copytree(tiny_model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["dropout"] = 0.3
    config["decoding"].update(guidance=2.0, candidates=3)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "default",
    [
        "model.width=768",
        "model.layers=12",
        "encoder.kind=efficientnet_lite",
        "encoder.image_size=288",
        "encoder.fit=squash",
    ],
)
def test_a_given_default_is_refused_like_any_value(recipe_file, default):
    setting, _, value = default.partition("=")
    with pytest.raises(RecipeError, match=rf"^{setting}={value}: the model in model\.init=\S+ has "):
        prepare(load_recipe(recipe_file, [default]), resume=False)


def test_changeable_settings_come_from_the_initial_model_unless_given(recipe_file, unlike_the_defaults):
    init = f"model.init={unlike_the_defaults}"
    silent = prepare(load_recipe(recipe_file, [init]), resume=False)
    assert silent.recipe.model.dropout == silent.model.config.model.dropout == 0.3
    assert (silent.recipe.decoding.guidance, silent.recipe.decoding.candidates) == (2.0, 3)
    said = prepare(
        load_recipe(recipe_file, [init, "model.dropout=0.1", "decoding.guidance=1.17"]), resume=False
    )
    assert said.recipe.model.dropout == said.model.config.model.dropout == 0.1
    assert (said.recipe.decoding.guidance, said.recipe.decoding.candidates) == (1.17, 3)


def test_settings_of_the_initial_model_pass_the_recipes_checks(recipe_file, tiny_ar_folder):
    """Both left_to_right and learned padding need settings that the model of model.init has."""
    changes = [f"model.init={tiny_ar_folder}", "training.image_free_probability=0"]
    changes += ["decoding.method=left_to_right", "decoding.beams=2", "data.learn_padding=true"]
    recipe = prepare(load_recipe(recipe_file, changes), resume=False).recipe
    assert recipe.model.kind == "autoregressive" and recipe.decoding.beams == 2
    asked = prepare(load_recipe(recipe_file, [*changes, "model.kind=autoregressive"]), resume=False).recipe
    assert asked == recipe
    with pytest.raises(RecipeError, match=r"model\.init=.*training\.image_free_probability=0\.2"):
        prepare(load_recipe(recipe_file, [changes[0]]), resume=False)
