"""Runs that are ended while they validate: killed, or by a signal."""

import json
import os
import signal
import time
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file
from two_processes import start_two

from ddcap.captioner import Captioner
from ddcap.recipe import load_recipe
from ddcap.training.checkpoint import list_checkpoints, load_progress
from ddcap.training.loop import train

IMAGES = 150  # validated in three batches, which takes seconds


@pytest.fixture
def many(captions_json, tmp_path):
    """The recipe's data with the one validation image so often that a validation can be caught."""
    content = json.loads(captions_json.read_text())
    (val,) = [entry for entry in content["images"] if entry["split"] == "val"]
    content["images"] = [entry for entry in content["images"] if entry["split"] == "train"]
    content["images"] += [{**val, "imgid": 1000 + number} for number in range(IMAGES)]
    path = tmp_path / "many.json"
    path.write_text(json.dumps(content))
    return [f"data.json={path}", f"training.validate_images={IMAGES}", "decoding.candidates=3"]


@pytest.fixture
def once(many):
    """Two epochs, validated in the end only."""
    return [*many, "training.epochs=2", "training.validate_every=2", "training.checkpoint_every=1000"]


def validations(output):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "validation"]


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def wait_for_validation(child, output):
    """The process, as soon as it has written the checkpoint that it is about to validate."""
    deadline = time.monotonic() + 240
    while not list_checkpoints(output) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return child


def start_training(*arguments):
    return forked.Process("-m", "ddcap", "train", *arguments)


@pytest.mark.slow
def test_a_run_killed_in_its_only_validation_repeats_it_first(recipe_file, tmp_path, once):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(load_recipe(recipe_file, [*once, f"training.output={whole}"]))
    child = wait_for_validation(start_training(recipe_file, *once, f"training.output={cut}"), cut)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (cut / "best").exists() and not validations(cut), "it was not killed in its validation"
    assert load_progress(list_checkpoints(cut)[-1]).validated_step is None

    recipe = load_recipe(recipe_file, [*once, f"training.output={cut}"])
    assert train(recipe, resume=True) == cut / "best"
    assert same(weights(cut / "best"), weights(whole / "best"))
    (expected,), (found,) = validations(whole), validations(cut)
    assert {**expected, "samples": []} == {**found, "samples": []}
    train(recipe, resume=True)  # and once only
    assert len(validations(cut)) == 1


@pytest.mark.slow
def test_a_run_killed_in_a_validation_resumes_as_if_uninterrupted(recipe_file, tmp_path, many):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    twice = [*many, "training.epochs=2", "training.validate_every=1", "training.checkpoint_every=1000"]
    train(load_recipe(recipe_file, [*twice, f"training.output={whole}"]))
    child = wait_for_validation(start_training(recipe_file, *twice, f"training.output={cut}"), cut)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not validations(cut), "it was not killed in its validation"
    train(load_recipe(recipe_file, [*twice, f"training.output={cut}"]), resume=True)
    assert [line["step"] for line in validations(cut)] == [line["step"] for line in validations(whole)]
    progress = [load_progress(list_checkpoints(output)[-1]) for output in (whole, cut)]
    assert progress[0].best_score == progress[1].best_score
    assert progress[0].best_step == progress[1].best_step
    assert same(weights(cut / "best"), weights(whole / "best"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_validation_at_once(recipe_file, tmp_path, once, number):
    output = tmp_path / "run"
    child = wait_for_validation(start_training(recipe_file, *once), output)
    child.send_signal(number)
    message = child.communicate(timeout=60)[1]
    assert child.returncode == 128 + number
    (checkpoint,) = list_checkpoints(output)
    done = load_progress(checkpoint).step
    assert f"ddcap: stopped by {number.name} after step {done} of {done}, saved in" in message
    assert "go on with --resume" in message and "Traceback" not in message
    assert not validations(output) and not (output / "best").exists()
    folder = train(load_recipe(recipe_file, once), resume=True)
    assert len(validations(output)) == 1 and Captioner.from_pretrained(folder).model is not None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc to find the processes in")
def test_a_signal_to_one_of_two_processes_ends_the_validation_of_both(recipe_file, tmp_path, once):
    output = tmp_path / "run"
    child = wait_for_validation(start_two("import ddcap.__main__", "train", recipe_file, *once), output)
    workers = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGTERM)
    message = child.communicate(timeout=120)[1]
    assert child.returncode != 0
    assert message.count("ddcap: stopped by SIGTERM after step") == 1 and "go on with --resume" in message
    assert not validations(output) and not (output / "best").exists()
    train(load_recipe(recipe_file, once), resume=True)
    assert len(validations(output)) == 1


def test_a_best_model_that_was_deleted_is_made_again(recipe_file):
    recipe = load_recipe(recipe_file, ["training.epochs=1"])
    folder = train(recipe)
    before = weights(folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert same(weights(train(recipe, resume=True)), before)
