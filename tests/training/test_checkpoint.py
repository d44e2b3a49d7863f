import shutil

import pytest
import torch

from ddcap.errors import CheckpointError
from ddcap.training.checkpoint import Checkpoint, Progress, list_checkpoints, load_checkpoint, save_checkpoint


def make(step):
    weights = {"a": torch.arange(6.0).view(2, 3) + step}
    average = {"a": torch.ones(2, 3)}
    return Checkpoint(Progress(step, 1.5, step, {"training": {"seed": 0}}), weights, average, {"state": {}})


def test_round_trip(tmp_path):
    path = save_checkpoint(tmp_path, make(7), keep=2)
    loaded = load_checkpoint(path)
    assert loaded.progress == make(7).progress
    assert torch.equal(loaded.weights["a"], make(7).weights["a"])
    assert torch.equal(loaded.average["a"], make(7).average["a"])


def test_only_the_newest_are_kept(tmp_path):
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
    with pytest.raises(CheckpointError, match="damaged or cut short") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    path = save_checkpoint(tmp_path, make(1), keep=2)
    (path / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        load_checkpoint(path)
