"""Two processes on the CPU, over gloo, against one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from two_processes import run_in_two, start_two

from ddcap.recipe import load_recipe
from ddcap.training.checkpoint import list_checkpoints
from ddcap.training.loop import train

pytestmark = pytest.mark.slow

# dropout is drawn by every process for itself; t, noise, dropped images and views are those of the image
QUIET = [
    "model.dropout=0",
    "diffusion.mask_end=0.9",
    "training.epochs=2",
    "training.warmup_epochs=0",
    "training.learning_rate=1e-3",
    "training.checkpoint_every=1",
    "training.validate_every=1",
    "training.validate_images=2",
]


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ACCELERATE = ["accelerate.commands.launch", "--cpu", "--num_processes=2"]
COMMAND = [sys.executable, "-m", *TORCHRUN, "-m", "ddcap", "train"]
SHARING = {
    "DDP": [],
    "FSDP2": ["training.fsdp=true"],
    "FSDP2, accumulating": ["training.fsdp=true", "training.gradient_accumulation=2"],
}

IN_TURN = """
import json, sys
from ddcap.machine import leave
from ddcap.recipe import load_recipe
from ddcap.training.loop import train

for recipe, changes, resume in json.loads(sys.argv[1]):
    train(load_recipe(recipe, changes), resume=resume)
leave(0)
"""


def launch(*command, launcher=TORCHRUN):
    command = [sys.executable, "-m", *launcher, *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train_in_two_processes(runs, *, resume=False):
    """Train with a recipe and changes each, one after the other, in the same two processes."""
    run_in_two(IN_TURN, json.dumps([[str(recipe), changes, resume] for recipe, changes in runs]))


def log(output, kind, name):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if line["kind"] == kind]


def close(first, second):
    one, other = (
        load_file(list_checkpoints(output)[-1] / "weights.safetensors") for output in (first, second)
    )
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=2e-3, atol=2e-5)


def undo_a_step(output):
    """As if the run had been killed before its last step."""
    shutil.rmtree(list_checkpoints(output)[-1])


def changes_for(folder, name, sharing):
    return [*QUIET, *SHARING[sharing], f"training.output={folder / name}"]


@pytest.fixture(scope="session")
def runs(shared_recipe, made_once):
    """Folder of `alone`, a run of one process, and of those of two processes, by how they share."""

    def make(folder):
        folder.mkdir()
        train(load_recipe(shared_recipe, [*QUIET, f"training.output={folder / 'alone'}"]))
        train_in_two_processes([(shared_recipe, changes_for(folder, name, name)) for name in SHARING])

    return made_once("two_processes", make)


@pytest.fixture(scope="session")
def resumed(runs, shared_recipe, made_once):
    """Folder of runs that two processes began: one made the last step, and then two made it again."""

    def make(folder):
        folder.mkdir()
        for name in ("DDP", "FSDP2"):
            shutil.copytree(runs / name, folder / f"{name} by one")
            undo_a_step(folder / f"{name} by one")
            train(load_recipe(shared_recipe, changes_for(folder, f"{name} by one", name)), resume=True)
            shutil.copytree(folder / f"{name} by one", folder / f"{name} by two")
            undo_a_step(folder / f"{name} by two")
        again = [(shared_recipe, changes_for(folder, f"{name} by two", name)) for name in ("DDP", "FSDP2")]
        train_in_two_processes(again, resume=True)

    return made_once("two_processes_resumed", make)


def same_curve(alone, two):
    losses = [torch.tensor(log(output, "train", "loss")) for output in (alone, two)]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)
    assert losses[0][-1] < losses[0][0]
    close(alone, two)
    validations = [log(output, "validation", "loss") for output in (alone, two)]
    assert validations[0] == pytest.approx(validations[1], rel=1e-3)


@pytest.mark.parametrize("sharing", SHARING)
def test_two_processes_equal_one_with_the_same_batch(runs, sharing):
    alone, two = runs / "alone", runs / sharing
    same_curve(alone, two)
    samples = [log(output, "validation", "samples") for output in (alone, two)]
    assert [len(one) for one in samples[0]] == [len(one) for one in samples[1]]
    assert [path.name for path in list_checkpoints(two)] == [path.name for path in list_checkpoints(alone)]
    best = load_file(two / "best" / "model.safetensors")
    assert best.keys() == load_file(alone / "best" / "model.safetensors").keys()


def test_accelerate_launch_equals_torchrun(runs, shared_recipe, tmp_path):
    two = tmp_path / "two"
    command = ["-m", "ddcap", "train", shared_recipe, *QUIET, f"training.output={two}"]
    assert launch(*command, launcher=ACCELERATE).splitlines() == [str(two / "best")]  # one of them prints
    same_curve(runs / "alone", two)


@pytest.mark.parametrize("sharing", ["DDP", "FSDP2"])
def test_one_process_goes_on_for_two_and_two_for_one(runs, resumed, sharing):
    alone = runs / "alone"
    steps = len(log(alone, "train", "loss"))
    for who in ("one", "two"):
        mixed = resumed / f"{sharing} by {who}"
        close(alone, mixed)
        assert log(mixed, "train", "loss")[-1] == pytest.approx(log(alone, "train", "loss")[-1], rel=1e-3)
        assert list_checkpoints(mixed)[-1].name == f"step_{steps:08d}"


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="no /proc to find the processes in"
)


@needs_proc
def test_a_killed_process_ends_all_and_the_run_goes_on_from_its_checkpoint(recipe_file, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    longer = [*QUIET, "training.checkpoint_every=1", "training.epochs=8", "training.validate_every=8"]
    train(load_recipe(recipe_file, [*longer, f"training.output={whole}"]))
    arguments = [str(recipe_file), *longer, f"training.output={killed}"]
    launcher = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300  # of machines that are busy with other things
    while not list_checkpoints(killed) and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    assert launcher.wait(timeout=120) != 0
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    steps = [int(list_checkpoints(output)[-1].name.removeprefix("step_")) for output in (killed, whole)]
    assert 0 < steps[0] < steps[1], "the run was not killed in the middle"
    train_in_two_processes([(recipe_file, [*longer, f"training.output={killed}"])], resume=True)
    close(whole, killed)


@needs_proc
def test_a_signal_to_one_of_them_ends_all_with_a_checkpoint(recipe_file, tmp_path):
    output = tmp_path / "run"
    rarely = ["training.epochs=400", "training.checkpoint_every=100000", "training.validate_every=400"]
    arguments = [recipe_file, *rarely, f"training.output={output}", "training.fsdp=true"]
    parent = start_two("import ddcap.__main__", "train", *arguments)
    deadline = time.monotonic() + 300  # of machines that are busy with other things
    file = output / "log.jsonl"
    while not (file.exists() and file.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    workers = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGTERM)
    message = parent.communicate(timeout=120)[1]
    assert parent.returncode != 0
    assert message.count("ddcap: stopped by SIGTERM after step") == 1 and "go on with --resume" in message
    assert [path.name for path in list_checkpoints(output)] == [
        f"step_{len(log(output, 'train', 'loss')):08d}"
    ]
