"""Several processes of one machine."""

import json

import pytest
from two_processes import start_two

from ddcap.commands import main
from ddcap.machine import ALONE, join_processes, own_device


def test_a_process_that_was_started_alone_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_processes() is ALONE and ALONE.gather("mine") == ["mine"]


def test_processes_of_a_machine_take_a_gpu_each(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [own_device(device) for device in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda:3", "cuda:1"]
    monkeypatch.delenv("LOCAL_RANK")
    assert own_device("cuda") == "cuda"


@pytest.mark.slow
def test_an_evaluation_is_split_and_counted_once(captions_json, photos, tiny_model_folder, tmp_path, capsys):
    pytest.importorskip("pycocoevalcap")
    images = json.loads(captions_json.read_text())["images"]
    everything = [image | {"split": "test"} for image in images[:-1]]  # seven with the next: no even number
    everything.insert(2, images[0] | {"split": "test", "imgid": 99, "filename": "missing.jpg"})
    data = tmp_path / "test.json"
    data.write_text(json.dumps({"images": everything}))
    command = ["evaluate", str(tiny_model_folder), "--data", str(data), "--fast", "--json"]
    command += ["--images", str(photos[0].parent), "--precision", "float32", "--tokenization", "ptb-python"]
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    main([*command, "--predictions", str(paths[0])])
    alone = capsys.readouterr().out
    two = start_two("import ddcap.__main__", *command, "--predictions", paths[1])
    together, said = two.communicate(timeout=300)
    assert together.count("\n") == 1, said  # one of them prints
    printed = [json.loads(text) for text in (alone, together)]
    predictions = [json.loads(path.read_text()) for path in paths]
    assert [entry["image_id"] for entry in predictions[0]] == [
        str(image["imgid"]) for image in everything if image["imgid"] != 99
    ]
    assert predictions[0] == predictions[1] and printed[0] == printed[1]
    assert printed[1]["images"] == len(images) - 1 and list(printed[1]["failed"]) == ["99"]
