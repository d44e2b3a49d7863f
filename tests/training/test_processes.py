"""Two processes on the CPU, over gloo, against one."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from ddcap.recipe.file import load_recipe
from ddcap.training.checkpoint import list_checkpoints
from ddcap.training.loop import train

# t, noise, image drop and dropout are drawn per process, so whatever depends on them is off
QUIET = [
    "model.dropout=0",
    "training.image_free_probability=0",
    "diffusion.steps=1",
    "data.views=1",
    "data.captions_per_image=1",
    "training.epochs=2",
    "training.warmup_epochs=0",
    "training.learning_rate=1e-3",
    "training.checkpoint_every=500",
    "training.validate_every=1",
    "training.validate_images=2",
]


def train_in_two_processes(*arguments):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "ddcap", "train"]
    done = subprocess.run(
        [sys.executable, *command, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def log(output, kind, name):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if line["kind"] == kind]


def close(first, second):
    one, other = (
        load_file(list_checkpoints(output)[-1] / "weights.safetensors") for output in (first, second)
    )
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=2e-3, atol=2e-5)


def test_two_processes_equal_one_with_the_same_batch_and_either_goes_on_for_the_other(recipe_file, tmp_path):
    alone, two, mixed = (tmp_path / name for name in ("alone", "two", "mixed"))
    train(load_recipe(recipe_file, [*QUIET, f"training.output={alone}"]))
    printed = train_in_two_processes(recipe_file, *QUIET, f"training.output={two}")
    assert printed.splitlines() == [str(two / "best")]  # one of them prints
    losses = [torch.tensor(log(output, "train", "loss")) for output in (alone, two)]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)
    assert losses[0][-1] < losses[0][0]
    close(alone, two)
    validations = [log(output, "validation", "loss") for output in (alone, two)]
    assert validations[0] == pytest.approx(validations[1], rel=1e-3)
    samples = [log(output, "validation", "samples") for output in (alone, two)]
    assert [len(one) for one in samples[0]] == [len(one) for one in samples[1]]
    assert [path.name for path in list_checkpoints(two)] == [path.name for path in list_checkpoints(alone)]

    per_epoch = len(losses[0]) // 2
    stop = [*QUIET, f"training.output={mixed}", "training.checkpoint_every=1"]
    train_in_two_processes(recipe_file, *stop)
    for path in list_checkpoints(mixed)[-1].iterdir():  # as if it had been killed before its last step
        path.unlink()
    list_checkpoints(mixed)[-1].rmdir()
    assert list_checkpoints(mixed)[-1].name == f"step_{2 * per_epoch - 1:08d}"
    train(load_recipe(recipe_file, stop), resume=True)
    close(alone, mixed)
