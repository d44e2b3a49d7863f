"""Images that cannot be read, alone in a part, in a validation batch, or all of them."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file
from two_processes import run_in_two

from ddcap.data.batches import training_steps
from ddcap.errors import DataError
from ddcap.machine import Processes
from ddcap.recipe import load_recipe
from ddcap.training import validation
from ddcap.training.checkpoint import list_checkpoints
from ddcap.training.loop import DivergenceGuard, _take_step, train
from ddcap.training.loss import shares
from ddcap.training.run import Run, UnreadableImages


@pytest.fixture
def damage(photos, tmp_path):
    """Copies the photographs and cuts those that are named; returns what a recipe says of the copies."""
    folder = tmp_path / "photos"
    shutil.copytree(photos[0].parent, folder)

    def damage(*names):
        for name in names:
            (folder / name).write_bytes((folder / name).read_bytes()[:3000])
        return f"data.root={folder}"

    return damage


@pytest.fixture
def splits(captions_json, tmp_path):
    """Train and validation images by number; returns the names of each."""

    def splits(train, val):
        content = json.loads(captions_json.read_text())
        entries = content["images"]
        content["images"] = [
            {**entries[number], "split": split, "imgid": 100 * place + number}
            for place, (split, numbers) in enumerate((("train", train), ("val", val)))
            for number in numbers
        ]
        path = tmp_path / "splits.json"
        path.write_text(json.dumps(content))
        names = [[entries[number]["filename"] for number in some] for some in (train, val)]
        return f"data.json={path}", *names

    return splits


def lines(output, kind):
    found = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


ONE_BY_ONE = ["data.captions_per_image=1", "data.views=1"]
ONE_BY_ONE += ["training.epochs=1", "training.checkpoint_every=1000"]


@pytest.mark.parametrize("kind", ["step", "part", "cached"])
def test_an_image_that_is_alone_in_its_part_is_left_out(recipe_file, tmp_path, damage, splits, caplog, kind):
    """The others teach as if it had never been listed."""
    json_setting, train_names, _ = splits([0, 1, 2, 3], [5])
    root = damage(train_names[1])
    settings = [*ONE_BY_ONE, json_setting, root, "model.dropout=0"]
    settings += ["training.batch_size=1"] if kind == "step" else ["training.batch_size=4"]
    settings += ["training.gradient_accumulation=4"] if kind != "step" else []
    settings += ["encoder.trainable=false", f"data.cache={tmp_path / 'cache'}"] if kind == "cached" else []
    train(load_recipe(recipe_file, settings))
    assert caplog.text.count(train_names[1]) == 1
    assert "1 images could not be read and were skipped" in caplog.text
    losses = [line["loss"] for line in lines(tmp_path / "run", "train")]
    assert losses and all(loss > 0 for loss in losses)
    values = load_file(list_checkpoints(tmp_path / "run")[-1] / "weights.safetensors").values()
    assert all(value.isfinite().all() for value in values)


def test_a_blank_part_counts_for_nothing(recipe_file, tmp_path, damage, splits):
    """A step of four images, one of them unreadable, is the same in one part and in four."""
    json_setting, train_names, _ = splits([0, 1, 2, 3], [5])
    root = damage(train_names[2])
    for parts in (1, 4):
        changes = [*ONE_BY_ONE, json_setting, root, "model.dropout=0", "training.batch_size=4"]
        changes += [f"training.gradient_accumulation={parts}", f"training.output={tmp_path / str(parts)}"]
        train(load_recipe(recipe_file, [*changes, "training.learning_rate=1e-3", "training.warmup_epochs=0"]))
    ones, others = (lines(tmp_path / str(parts), "train") for parts in (1, 4))
    for one, other in zip(ones, others, strict=True):
        for name in ("loss", "length_loss", "gradient_norm"):
            assert one[name] == pytest.approx(other[name], rel=2e-3), name


@pytest.mark.slow
def test_a_process_without_readable_images_does_not_stop_the_other(recipe_file, tmp_path, damage, splits):
    json_setting, train_names, _ = splits([0, 1, 2], [5])
    settings = [*ONE_BY_ONE, json_setting, damage(train_names[0]), "training.batch_size=2"]
    _, said = run_in_two("import ddcap.__main__", "train", recipe_file, *settings)
    assert said.count("1 images could not be read and were skipped") == 1
    assert all(line["loss"] > 0 for line in lines(tmp_path / "run", "train"))


def test_a_step_without_images_changes_nothing(recipe_file, damage, splits):
    """Nor do weight decay and momentum: it is as if it had not been."""
    json_setting, train_names, _ = splits([0, 1], [5])
    settings = [*ONE_BY_ONE, json_setting, damage(train_names[0]), "training.batch_size=1"]
    run = Run(load_recipe(recipe_file, settings), resume=False, progress_bar=iter)
    seen = set()
    for step, parts in enumerate(training_steps(run.inputs.train_data, run.plan, 0, run.total_steps)):
        before = {name: value.clone() for name, value in run.inputs.model.stored_state().items()}
        _take_step(run, step, parts, DivergenceGuard())
        after = run.inputs.model.stored_state()
        is_same = all(torch.equal(after[name], value) for name, value in before.items())
        assert is_same == parts[0].is_blank
        seen.add(is_same)
    assert seen == {True, False}


def test_a_run_of_which_no_image_can_be_read_ends(recipe_file, tmp_path, damage, splits):
    json_setting, train_names, _ = splits([0, 1], [5])
    settings = [*ONE_BY_ONE, json_setting, damage(*train_names), "training.batch_size=1"]  # 7 captions
    reason = r"no image of 7 steps in a row could be read; .*data check"
    with pytest.raises(DataError, match=reason):
        train(load_recipe(recipe_file, settings))
    assert lines(tmp_path / "run", "train") == []


@pytest.mark.parametrize("cached", [False, True])
def test_validation_leaves_out_what_it_cannot_read(recipe_file, tmp_path, damage, splits, caplog, cached):
    """Alone in its batch, or beside others; the figures are those of the images that are left."""
    json_setting, _, val_names = splits([0, 1, 2, 3], [4, 5, 6])
    settings = ["training.epochs=1", json_setting]
    settings += ["encoder.trainable=false", f"data.cache={tmp_path / 'cache'}"] if cached else []
    results = {}
    before = validation._IMAGES_AT_ONCE
    try:
        for at_once in (1, 50):
            validation._IMAGES_AT_ONCE = at_once
            output = tmp_path / f"run{at_once}"
            changes = [*settings, damage(val_names[1]), f"training.output={output}"]
            train(load_recipe(recipe_file, changes))
            (results[at_once],) = lines(output, "validation")
            assert val_names[1] in caplog.text and "1 images could not be read" in caplog.text
            caplog.clear()
    finally:
        validation._IMAGES_AT_ONCE = before
    for result in results.values():
        assert result["pictures"] == 2 and len(result["samples"]) == 2 and len(result["unreadable"]) == 1
    alone, together = (result["length_loss"] for result in results.values())
    assert alone == pytest.approx(together, rel=1e-4)  # no mean over images that were not there


def test_no_validation_image_at_all_is_one_line(recipe_file, damage, splits):
    json_setting, _, val_names = splits([0, 1, 2, 3], [5])
    with pytest.raises(DataError, match=r"no other validation image can be read either; check data\.root"):
        train(load_recipe(recipe_file, ["training.epochs=1", json_setting, damage(val_names[0])]))


def test_images_of_all_processes_are_counted_once(caplog):
    everyones = [{"a: cut", "b: cut"}, {"b: cut", "c: cut"}]
    for index in (0, 1):
        found = UnreadableImages(100, Processes(2, index, lambda _: everyones))
        found.note(everyones[index])
        with caplog.at_level(logging.WARNING):
            found.report()
    assert caplog.text.count("3 images could not be read and were skipped") == 1


def test_blank_steps_end_a_run_only_many_in_a_row():
    found = UnreadableImages(1000)
    found.note(["a.jpg: cut"])
    for _ in range(3):
        for _ in range(19):
            found.count_step(is_blank=True)
        found.count_step(is_blank=False)
    with pytest.raises(DataError, match=r"^a\.jpg: cut; no image of 20 steps"):
        for _ in range(20):
            found.count_step(is_blank=True)


def test_the_weights_of_a_blank_part_are_zero(recipe_file, damage, splits):
    json_setting, train_names, _ = splits([0, 1], [5])
    changes = [*ONE_BY_ONE, json_setting, damage(train_names[0]), "training.batch_size=2"]
    recipe = load_recipe(recipe_file, [*changes, "training.gradient_accumulation=2"])
    run = Run(recipe, resume=False, progress_bar=iter)
    kinds = set()
    for parts in training_steps(run.inputs.train_data, run.plan, 0, run.total_steps):
        found, has_images = shares(parts, run.accelerator)
        assert has_images == any(share.images for share in found)
        assert [share.images == 0 for share in found] == [part.is_blank for part in parts]
        assert sum(share.words for share in found) == sum(share.images for share in found) == has_images
        kinds |= {part.is_blank for part in parts}
        assert all(torch.equal(part.pixels, torch.zeros_like(part.pixels)) for part in parts if part.is_blank)
    assert kinds == {True, False}
