"""Training a judge: beside denoising with shared weights, or alone on top of a trained model."""

import json
import shutil

import pytest
import torch
import yaml

from ddcap.captioner import Captioner
from ddcap.errors import RecipeError
from ddcap.model.loading import load_model
from ddcap.recipe import load_recipe
from ddcap.training.checkpoint import list_checkpoints
from ddcap.training.loop import train


def losses(folder, kind):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == kind]


def test_shared_weights_learn_both_and_resume(recipe_file, tmp_path):
    shared = ["model.judge=shared", "training.judge_share=0.5", "encoder.trainable=false"]
    whole = train(load_recipe(recipe_file, [*shared, f"training.output={tmp_path / 'whole'}"]))
    model = load_model(whole)
    assert model.denoiser.reading_embedding.abs().sum() > 0
    assert losses(tmp_path / "whole", "train")[-1] < losses(tmp_path / "whole", "train")[0]
    # a run that is stopped half way goes on to the same weights
    half = load_recipe(recipe_file, [*shared, f"training.output={tmp_path / 'half'}"])
    train(half)
    shutil.rmtree(list_checkpoints(tmp_path / "half")[-1])
    resumed = load_model(train(half, resume=True))
    for name, value in model.stored_state().items():
        assert torch.equal(value, resumed.stored_state()[name]), name


@pytest.fixture
def judge_recipe(recipe_file, tiny_model_folder, tmp_path):
    recipe = yaml.safe_load(recipe_file.read_text())
    recipe["data"]["long_captions"] = "truncate"
    recipe["model"] = {"init": str(tiny_model_folder), "judge": "own", "judge_layers": 1}
    recipe["training"].update(judge_only=True, output=str(tmp_path / "judged"))
    del recipe["encoder"], recipe["tokenizer"]
    path = tmp_path / "judge.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_an_own_judge_is_added_to_a_trained_model_and_leaves_it_alone(
    judge_recipe, tiny_model_folder, tmp_path, photos
):
    folder = train(load_recipe(judge_recipe))
    before, after = load_model(tiny_model_folder), load_model(folder)
    assert after.config.model.judge_layers == 1
    for name, value in before.stored_state().items():
        torch.testing.assert_close(after.stored_state()[name], value)
    assert losses(tmp_path / "judged", "train")[-1] < losses(tmp_path / "judged", "train")[0]
    plain = Captioner.from_pretrained(tiny_model_folder, runtime="torch")
    judged = Captioner.from_pretrained(folder, runtime="torch")
    assert plain(photos[0])[0].text == judged(photos[0])[0].text  # until decoding.judge_weight asks for it


def test_a_judge_alone_needs_a_judge_of_its_own(recipe_file):
    with pytest.raises(RecipeError, match=r"training\.judge_only=true: model\.judge=none; set model\.judge"):
        load_recipe(recipe_file, ["training.judge_only=true"])
