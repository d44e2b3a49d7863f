"""generation_config.json, and settings by the names of other libraries."""

import json
import shutil

import pytest

from ddcap.captioner import Captioner
from ddcap.errors import CheckpointError, DDCapError, RecipeError
from ddcap.model.config import read_config
from ddcap.model.generation_config import GENERATION_CONFIG_NAME


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    Captioner.from_pretrained(tiny_model_folder).save_pretrained(tmp_path / "model", steps=7, guidance=1.25)
    return tmp_path / "model"


def test_saved_under_the_names_of_diffusers_and_read_first(folder):
    path = folder / GENERATION_CONFIG_NAME
    values = json.loads(path.read_text())
    assert values["num_inference_steps"] == 7 and values["guidance_scale"] == 1.25 and "steps" not in values
    assert read_config(folder).decoding.steps == 7
    path.write_text(json.dumps({"num_inference_steps": 3, "transformers_version": "5", "_from": "x"}))
    decoding = read_config(folder).decoding
    assert decoding.steps == 3 and decoding.guidance == 1.25  # config.json has the rest
    path.unlink()
    assert read_config(folder).decoding.steps == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON object; repair it"),
        ("[]", "not a JSON object; repair it"),
        ('{"steps": 1, "num_inference_steps": 1}', "are the same setting"),
        ('{"num_return_sequences": 2}', "is given in a call"),
        ('{"no_repeat": 2}', "no_repeat"),
        ('{"num_inference_steps": 0}', "steps"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(folder, text, message):
    (folder / GENERATION_CONFIG_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_config(folder)


def test_a_model_saved_over_another_does_not_decode_as_it_did(folder):
    Captioner.from_pretrained(folder, runtime="torch").model.save_pretrained(folder)
    assert not (folder / GENERATION_CONFIG_NAME).exists()


def test_calls_take_the_other_names(tiny_model_folder, photos):
    captioner = Captioner.from_pretrained(tiny_model_folder)
    ours = captioner(photos[0], steps=2, guidance=1.5)
    theirs = captioner(photos[0], num_inference_steps=2, guidance_scale=1.5)
    assert theirs[0].text == ours[0].text and theirs[0].confidences == ours[0].confidences
    assert theirs[0].confidences != captioner(photos[0], steps=7, guidance=1)[0].confidences
    three = next(captioner.caption_each([photos[0]], num_return_sequences=3))
    assert [caption.text for caption in three.captions] == [
        caption.text for caption in next(captioner.caption_each([photos[0]], num=3)).captions
    ]
    with pytest.raises(DDCapError, match="num=3: a call returns one caption per image"):
        captioner(photos[0], num_return_sequences=3)
    with pytest.raises(RecipeError, match="same setting"):
        captioner(photos[0], steps=2, num_inference_steps=2)


def test_a_model_of_graphs_is_copied_with_its_settings(tmp_path, photos):
    captioner = Captioner.from_pretrained()
    captioner.save_pretrained(tmp_path / "copy", steps=5)
    copy = Captioner.from_pretrained(tmp_path / "copy")
    assert copy.runtime == "onnx" and copy.decoding.steps == 5
    assert copy(photos[0])[0].text == captioner(photos[0], steps=5)[0].text
    with pytest.raises(CheckpointError, match="own folder"):
        copy.save_pretrained(tmp_path / "copy")
    with pytest.raises(DDCapError, match="dtype"):
        copy.save_pretrained(tmp_path / "other", dtype="float16")
    shutil.rmtree(tmp_path / "copy")
