import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ddcap.captioner import Captioner
from ddcap.data.karpathy import CaptionedImage
from ddcap.errors import RecipeError
from ddcap.objective.self_critical import CiderReward, advantages
from ddcap.recipe import Recipe
from ddcap.recipe.file import load_recipe
from ddcap.settings import parse_settings
from ddcap.training.checkpoint import list_checkpoints
from ddcap.training.loop import train
from ddcap.training.setup import prepare
from ddcap.training.validation import validate

RECORDS = [
    ("a", ["A cat looks into the camera .", "A cat seen from close-up ."]),
    ("b", ["Two people stand near a wall .", "People in front of something dark ."]),
    ("c", ["A cup of coffee is there .", "A cup seen from close-up ."]),
]


@pytest.fixture
def reward(tiny_tokenizer, tmp_path):
    records = [CaptionedImage(name, tmp_path, "train", tuple(texts)) for name, texts in RECORDS]
    return CiderReward(records, tiny_tokenizer)


def test_a_human_caption_of_the_picture_is_worth_more_than_anothers(reward, tiny_tokenizer):
    rows = tiny_tokenizer.encode_batch(["A cat looks into the camera.", "Two people stand near a wall."])
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [tiny_tokenizer.padding_id] * (longest - len(row)) for row in rows])
    own = reward(tokens, ["a", "b"])
    swapped = reward(tokens, ["b", "a"])
    assert (own > 2).all() and (swapped < 0.5).all()
    torch.testing.assert_close(reward(tokens, ["a"])[0], own[0])  # two captions of one picture


def test_a_caption_that_does_not_end_is_worth_less(reward, tiny_tokenizer):
    ids = tiny_tokenizer.encode_batch(["A cat looks into the camera."])[0]
    assert ids[-1] == tiny_tokenizer.end_id
    assert reward(torch.tensor([ids[:-1]]), ["a"]) < reward(torch.tensor([ids]), ["a"])


def test_an_advantage_is_over_the_other_captions_of_the_picture():
    rewards = torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 5.0])
    assert advantages(rewards, 3).tolist() == [-1.5, 0.0, 1.5, 0.0, 0.0, 0.0]


@pytest.fixture(scope="module", params=["tiny_model_folder", "tiny_twin_folder"])
def learned(request, small_photos, captions_json, tmp_path_factory):
    """A recipe, as a dictionary, that goes on from a model that already knows a little."""
    kind = "diffusion" if request.param == "tiny_model_folder" else "autoregressive"
    folder = tmp_path_factory.mktemp(kind)
    recipe = {
        "data": {
            "root": str(small_photos[0].parent),
            "json": str(captions_json),
            "captions_per_image": 2,
            "workers": 0,
        },
        "model": {"init": str(request.getfixturevalue(request.param))},
        "training": {
            "output": str(folder / "likelihood"),
            "epochs": 60,
            "warmup_epochs": 0,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "image_free_probability": 0.0 if kind == "autoregressive" else 0.2,
            "log_every": 5,
            "validate_every": 1000,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    first = train(load_recipe(path))
    return {**recipe, "model": {"init": str(first)}}


@pytest.fixture
def recipe_file(learned, tmp_path):
    """Its self-critical training."""
    changes = {
        "objective": "self_critical",
        "output": str(tmp_path / "run"),
        "epochs": 20,
        "learning_rate": 1e-3,
    }
    recipe = {**learned, "training": {**learned["training"], **changes}}
    recipe["self_critical"] = {"captions": 4, "steps": 4}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_training_raises_the_reward_and_resumes_as_if_uninterrupted(recipe_file, tmp_path):
    train(load_recipe(recipe_file, ["training.checkpoint_every=20"]))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rewards = [line["reward"] for line in lines if line["kind"] == "train"]
    third = len(rewards) // 3
    assert sum(rewards[-third:]) > sum(rewards[:third])
    newest = list_checkpoints(tmp_path / "run")[-1]
    expected = load_file(newest / "weights.safetensors")
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    assert len(list_checkpoints(tmp_path / "run")) == 1
    train(load_recipe(recipe_file, ["training.checkpoint_every=20"]), resume=True)
    resumed = load_file(list_checkpoints(tmp_path / "run")[-1] / "weights.safetensors")
    assert all(torch.equal(expected[name], value) for name, value in resumed.items())


def test_human_captions_keep_their_likelihood(recipe_file, tmp_path):
    """Drawn captions alone make human ones less likely; with a share of their likelihood they stay so."""
    data = prepare(load_recipe(recipe_file, [f"training.output={tmp_path / 'unused'}"]), resume=False)
    losses = []
    for weight in (0, 1):
        output = tmp_path / f"weight{weight}"
        changes = [f"training.output={output}", f"self_critical.likelihood={weight}"]
        few_steps = ["self_critical.learned_steps=2", "training.validate_every=20"]
        captioner = Captioner.from_pretrained(train(load_recipe(recipe_file, [*changes, *few_steps])))
        result = validate(
            captioner.model,
            data.train_data,
            captioner.tokenizer,
            captioner.decoding,
            images=8,
            samples=0,
            device=captioner.model.device,
        )
        losses.append(result.loss)
    assert losses[1] < losses[0]


def test_an_untrained_model_is_refused():
    with pytest.raises(RecipeError, match=r"model\.init"):
        parse_settings(Recipe, {"training": {"objective": "self_critical"}}, "recipe")
