import pickle
import random
import shutil

import pytest
import torch

from ddcap.errors import CheckpointError
from ddcap.training.checkpoint import Checkpoint, Progress, list_checkpoints, load_checkpoint, save_checkpoint


def make(step):
    weights = {"a": torch.arange(6.0).view(2, 3) + step}
    average = {"a": torch.ones(2, 3)}
    return Checkpoint(Progress(step, 1.5, step, {"training": {"seed": 0}}), weights, average, {"state": {}})


def test_a_checkpoint_survives_saving_and_loading(tmp_path):
    path = save_checkpoint(tmp_path, make(7), keep=2)
    loaded = load_checkpoint(path)
    assert loaded.progress == make(7).progress
    assert torch.equal(loaded.weights["a"], make(7).weights["a"])
    assert torch.equal(loaded.average["a"], make(7).average["a"])


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (1, 2, 10, 3):
        save_checkpoint(tmp_path, make(step), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000003", "step_00000010"]


def test_a_half_written_checkpoint_is_not_listed_and_does_not_hinder_the_next(tmp_path):
    path = save_checkpoint(tmp_path, make(1), keep=2)
    left = shutil.copytree(
        path, path.with_name(".step_00000002.1-00000000.writing")
    )  # of one that was killed
    assert list_checkpoints(tmp_path) == [path]
    save_checkpoint(tmp_path, make(2), keep=2)
    assert not left.exists()  # it may be gigabytes
    assert load_checkpoint(list_checkpoints(tmp_path)[-1]).progress.step == 2


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "average.safetensors", "optimizer.pt", "progress.json"]
)
def test_a_file_cut_in_half_is_one_clear_line(tmp_path, name):
    path = save_checkpoint(tmp_path, make(1), keep=2)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged or truncated") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("optimizer.pt", b"no pickle"),
        ("optimizer.pt", b"\x80\x04\x95\xff\xff\xff\xff"),
        ("optimizer.pt", pickle.dumps(print)),
        ("optimizer.pt", b""),
        ("progress.json", b'{"step": "soon", "best_score": null, "best_step": null, "recipe": {}}'),
        ("progress.json", b"[1, 2]"),
        ("progress.json", b"{}"),
    ],
)
def test_a_damaged_file_is_one_clear_line(tmp_path, name, content):
    path = save_checkpoint(tmp_path, make(1), keep=2)
    (path / name).write_bytes(content)
    refused(path)


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(2)])
def test_a_missing_optimizer_is_one_clear_line(tmp_path, value):
    path = save_checkpoint(tmp_path, make(1), keep=2)
    torch.save(value, path / "optimizer.pt")
    refused(path)


def test_random_damage_is_read_or_one_clear_line(tmp_path):
    path = save_checkpoint(tmp_path, make(1), keep=2)
    whole = (path / "optimizer.pt").read_bytes()
    generator, failures = random.Random(0), 0
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(8):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        (path / "optimizer.pt").write_bytes(damaged)
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            failures += 1
            assert "\n" not in str(error)
    assert failures


def refused(path):
    with pytest.raises(CheckpointError, match="damaged or truncated") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) and "delete this folder" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    path = save_checkpoint(tmp_path, make(1), keep=2)
    (path / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        load_checkpoint(path)
