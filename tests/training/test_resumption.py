import json

import pytest
import torch
from safetensors.torch import load_file

from ddcap.data.records import load_records
from ddcap.errors import RecipeError
from ddcap.recipe import load_recipe
from ddcap.settings import dump_settings
from ddcap.training.checkpoint import (
    MAY_CHANGE,
    caption_digest,
    changes,
    check_same_captions,
    check_unchanged,
    list_checkpoints,
    load_progress,
)
from ddcap.training.loop import train


@pytest.fixture
def begun(recipe_file):
    """A run of one epoch."""
    train(load_recipe(recipe_file, ["training.epochs=1"]))
    return recipe_file


@pytest.mark.parametrize(
    ("change", "both"),
    [
        ("training.seed=1", "training.seed was 0 and is now 1"),
        ("training.learning_rate=0.02", "training.learning_rate was 0.01 and is now 0.02"),
        ("training.batch_size=4", "training.batch_size was 8 and is now 4"),
        ("diffusion.mask_end=0.9", "diffusion.mask_end was 0.99999 and is now 0.9"),
        ("training.image_free_probability=0", "training.image_free_probability was 0.2 and is now 0.0"),
        ("model.dropout=0", "model.dropout was 0.1 and is now 0.0"),
        ("data.views=2", "data.views was 3 and is now 2"),
        ("encoder.trainable=false", "encoder.trainable was True and is now False"),
        ("decoding.length=9", "decoding.length was predicted and is now 9"),
        ("tokenizer.vocabulary_size=130", "tokenizer.vocabulary_size was 120 and is now 130"),
    ],
)
def test_a_changed_recipe_is_refused_with_both_values(begun, tmp_path, change, both):
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RecipeError, match=r"--resume needs the recipe .*training\.output=") as caught:
        train(load_recipe(begun, ["training.epochs=2", change]), resume=True)
    assert both in str(caught.value) and "\n" not in str(caught.value)
    assert "epochs" not in str(caught.value)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_changed_captions_are_refused(recipe_file, captions_json, tmp_path):
    """Be it one caption of one image; a copy with the same captions would do."""
    own, asked = tmp_path / "own.json", ["training.epochs=1"]
    own.write_text(captions_json.read_text())
    train(load_recipe(recipe_file, [f"data.json={own}", *asked]))
    records = [one for split in ("train", "val") for one in load_records(captions_json, "elsewhere", split)]
    assert load_progress(list_checkpoints(tmp_path / "run")[-1]).captions == caption_digest(records)
    for split in ("train", "val"):
        entries = json.loads(captions_json.read_text())
        changed = next(entry for entry in entries["images"] if entry["split"] == split)
        changed["sentences"][0]["raw"] += " again"
        own.write_text(json.dumps(entries))
        with pytest.raises(
            RecipeError, match=r"--resume needs the captions .*, but data\.json=.*own\.json has"
        ):
            train(load_recipe(recipe_file, [f"data.json={own}", "training.epochs=2"]), resume=True)


def test_a_run_of_an_earlier_version_knows_no_captions(tmp_path):
    check_same_captions(None, "abc", tmp_path, "data.json=x")
    with pytest.raises(RecipeError, match=r"data\.json=x has others now; undo that"):
        check_same_captions("abd", "abc", tmp_path, "data.json=x")


def test_all_changes_are_named_at_once(begun):
    with pytest.raises(RecipeError, match=r"training\.\w+ was .* and is now .*, training\.\w+ was "):
        train(load_recipe(begun, ["training.seed=1", "training.weight_decay=0.5"]), resume=True)


def test_allowed_changes_are_taken(begun, tmp_path):
    elsewhere = tmp_path / "moved"
    (tmp_path / "run").rename(elsewhere)
    allowed = ["epochs=2", "log_every=2", "checkpoint_every=3", "keep_checkpoints=3", "validate_every=1"]
    allowed += ["validate_at=[1]"]
    allowed += ["sample_captions=1", "gradient_accumulation=2", "gradient_checkpointing=true"]
    dotted = [f"training.{change}" for change in [*allowed, f"output={elsewhere}"]]
    train(load_recipe(begun, [*dotted, "data.workers=1"]), resume=True)
    newest = json.loads((list_checkpoints(elsewhere)[-1] / "progress.json").read_text())
    assert newest["recipe"]["training"]["epochs"] == 2
    names = {change.partition("=")[0] for change in [*dotted, "data.workers=1"]}
    assert names < MAY_CHANGE


def test_a_model_chosen_on_other_images_is_not_held_against_the_next(
    recipe_file, tmp_path, captions_json, caplog
):
    """The best score is of the images it was measured on."""
    entries = json.loads(captions_json.read_text())
    val = [entry for entry in entries["images"] if entry["split"] == "val"] * 30
    entries["images"] = [entry for entry in entries["images"] if entry["split"] == "train"]
    entries["images"] += [{**entry, "imgid": 100 + number} for number, entry in enumerate(val)]
    many = tmp_path / "many.json"
    many.write_text(json.dumps(entries))
    often = [f"data.json={many}", "training.validate_images=12", "training.validate_every=1"]
    train(load_recipe(recipe_file, [*often, "training.epochs=1"]))
    path = list_checkpoints(tmp_path / "run")[-1] / "progress.json"
    progress = json.loads(path.read_text())
    path.write_text(json.dumps({**progress, "best_score": 1e6}))
    kept = load_file(tmp_path / "run" / "best" / "model.safetensors")
    train(load_recipe(recipe_file, [*often, "training.epochs=2"]), resume=True)
    same = load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert all(torch.equal(same[name], value) for name, value in kept.items())  # nothing is over a million
    assert "chosen" not in caplog.text
    other_images = ["training.epochs=3", "training.validate_images=20"]
    train(load_recipe(recipe_file, [*often, *other_images]), resume=True)
    other = load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert any(not torch.equal(other[name], value) for name, value in kept.items())
    assert "training.validate_images was 12 and is now 20: choosing the best model again" in caplog.text


def test_a_setting_that_an_older_run_does_not_know_had_its_default(recipe_file):
    recipe = load_recipe(recipe_file)
    before = dump_settings(recipe)
    del before["training"]["seed"]
    before["self_critical"] = {"captions": 5}
    before["model"]["forgotten"] = 3
    assert changes(before, recipe) == {}
    assert changes(before, load_recipe(recipe_file, ["training.seed=2"])) == {"training.seed": (0, 2)}


def test_a_run_by_a_retired_setting_does_not_go_on_by_another(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file)
    before = dump_settings(recipe)
    before["training"]["objective"], before["encoder"]["trainable_from"] = "likelihood", 0
    check_unchanged(before, recipe, tmp_path)
    before["training"]["objective"] = "self_critical"
    with pytest.raises(RecipeError, match=r"training\.objective was self_critical and is now no more"):
        check_unchanged(before, recipe, tmp_path)
