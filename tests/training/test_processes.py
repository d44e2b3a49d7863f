"""Two processes on the CPU, over gloo, against one."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from ddcap.recipe.file import load_recipe
from ddcap.training.checkpoint import list_checkpoints
from ddcap.training.loop import train

# dropout is drawn by every process for itself; t, noise, dropped images and views are those of the picture
QUIET = [
    "model.dropout=0",
    "diffusion.mask_end=0.9",
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


@pytest.fixture
def alone(recipe_file, tmp_path):
    """A run in one process."""
    output = tmp_path / "alone"
    train(load_recipe(recipe_file, [*QUIET, f"training.output={output}"]))
    return output


def same_curve(alone, two):
    losses = [torch.tensor(log(output, "train", "loss")) for output in (alone, two)]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)
    assert losses[0][-1] < losses[0][0]
    close(alone, two)
    validations = [log(output, "validation", "loss") for output in (alone, two)]
    assert validations[0] == pytest.approx(validations[1], rel=1e-3)
    return len(losses[0])


@pytest.mark.parametrize(
    "sharing",
    [[], ["training.fsdp=true"], ["training.fsdp=true", "training.gradient_accumulation=2"]],
    ids=["DDP", "FSDP2", "FSDP2, accumulating"],
)
def test_two_processes_equal_one_with_the_same_batch(recipe_file, tmp_path, alone, sharing):
    two = tmp_path / "two"
    printed = train_in_two_processes(recipe_file, *QUIET, *sharing, f"training.output={two}")
    assert printed.splitlines() == [str(two / "best")]  # one of them prints
    same_curve(alone, two)
    samples = [log(output, "validation", "samples") for output in (alone, two)]
    assert [len(one) for one in samples[0]] == [len(one) for one in samples[1]]
    assert [path.name for path in list_checkpoints(two)] == [path.name for path in list_checkpoints(alone)]
    best = load_file(two / "best" / "model.safetensors")
    assert best.keys() == load_file(alone / "best" / "model.safetensors").keys()


@pytest.mark.parametrize("sharing", [[], ["training.fsdp=true"]], ids=["DDP", "FSDP2"])
def test_one_process_goes_on_for_two_and_two_for_one(recipe_file, tmp_path, alone, sharing):
    mixed = tmp_path / "mixed"
    steps = len(log(alone, "train", "loss"))
    often = [*QUIET, *sharing, f"training.output={mixed}", "training.checkpoint_every=1"]
    train_in_two_processes(recipe_file, *often)
    undo_a_step(mixed)
    train(load_recipe(recipe_file, often), resume=True)
    close(alone, mixed)
    undo_a_step(mixed)
    train_in_two_processes(recipe_file, *often, "--resume")
    close(alone, mixed)
    assert log(mixed, "train", "loss")[-1] == pytest.approx(log(alone, "train", "loss")[-1], rel=1e-3)
    assert list_checkpoints(mixed)[-1].name == f"step_{steps:08d}"


def undo_a_step(output):
    """As if the run had been killed before its last step."""
    shutil.rmtree(list_checkpoints(output)[-1])
