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

from ddcap.recipe import load_recipe
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


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ACCELERATE = ["accelerate.commands.launch", "--cpu", "--num_processes=2"]
COMMAND = [sys.executable, "-m", *TORCHRUN, "-m", "ddcap", "train"]


def train_in_two_processes(*arguments, launcher=TORCHRUN):
    command = [sys.executable, "-m", *launcher, "-m", "ddcap", "train", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
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


def test_accelerate_launch_does_as_well_as_torchrun(recipe_file, tmp_path, alone):
    two = tmp_path / "two"
    train_in_two_processes(recipe_file, *QUIET, f"training.output={two}", launcher=ACCELERATE)
    same_curve(alone, two)


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
    deadline = time.monotonic() + 120
    while not list_checkpoints(killed) and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    assert launcher.wait(timeout=120) != 0
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    steps = [int(list_checkpoints(output)[-1].name.removeprefix("step_")) for output in (killed, whole)]
    assert 0 < steps[0] < steps[1], "the run was not killed in the middle"
    train_in_two_processes(*arguments, "--resume")
    close(whole, killed)


@needs_proc
def test_a_signal_to_one_of_them_ends_all_with_a_checkpoint(recipe_file, tmp_path):
    output = tmp_path / "run"
    rarely = ["training.epochs=400", "training.checkpoint_every=100000", "training.validate_every=400"]
    arguments = [str(recipe_file), *rarely, f"training.output={output}", "training.fsdp=true"]
    launcher = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    file = output / "log.jsonl"
    while not (file.exists() and file.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGTERM)
    message = launcher.communicate(timeout=120)[1].decode()
    assert launcher.returncode != 0
    assert message.count("ddcap: stopped by SIGTERM after step") == 1 and "go on with --resume" in message
    assert [path.name for path in list_checkpoints(output)] == [
        f"step_{len(log(output, 'train', 'loss')):08d}"
    ]


def undo_a_step(output):
    """As if the run had been killed before its last step."""
    shutil.rmtree(list_checkpoints(output)[-1])
