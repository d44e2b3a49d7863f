"""Several processes, started as a user starts them."""

import json
import subprocess
import sys

import pytest

from ddcap.machine import ALONE, join_processes, own_device

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", "-m"]


def test_a_process_that_was_started_alone_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_processes() is ALONE and ALONE.gather("mine") == ["mine"]


def test_processes_of_a_machine_take_a_gpu_each(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [own_device(device) for device in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda:3", "cuda:1"]
    monkeypatch.delenv("LOCAL_RANK")
    assert own_device("cuda") == "cuda"


def test_an_evaluation_is_split_and_counted_once(captions_json, photos, tiny_model_folder, tmp_path):
    pytest.importorskip("pycocoevalcap")
    images = json.loads(captions_json.read_text())["images"]
    everything = [image | {"split": "test"} for image in images]
    everything.insert(2, images[0] | {"split": "test", "imgid": 99, "filename": "missing.jpg"})
    data = tmp_path / "test.json"
    data.write_text(json.dumps({"images": everything}))
    command = ["ddcap", "evaluate", str(tiny_model_folder), "--data", str(data), "--fast", "--json"]
    command += ["--images", str(photos[0].parent), "--precision", "float32", "--tokenization", "ptb-python"]
    printed, predictions = [], []
    for name, launcher in (("one", ["-m"]), ("three", TORCHRUN)):
        path = tmp_path / f"{name}.json"
        done = subprocess.run(
            [sys.executable, *launcher, *command, "--predictions", str(path)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.stdout.count("\n") == 1, done.stderr  # one of them prints
        printed.append(json.loads(done.stdout))
        predictions.append(json.loads(path.read_text()))
    assert [entry["image_id"] for entry in predictions[0]] == [
        str(image["imgid"]) for image in everything if image["imgid"] != 99
    ]
    assert predictions[0] == predictions[1] and printed[0] == printed[1]
    assert printed[1]["images"] == len(images) and list(printed[1]["failed"]) == ["99"]
