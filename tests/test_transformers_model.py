"""A saved folder as transformers sees it."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

from ddcap.captioner import Captioner
from ddcap.decoding.generate import generate
from ddcap.errors import DDCapError, RecipeError


@pytest.fixture(scope="module")
def saved(tiny_model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    Captioner.from_pretrained(tiny_model_folder).save_pretrained(folder, steps=4)
    return folder


@pytest.fixture
def loaded(saved, tmp_path, monkeypatch):
    """Model and processor through the remote-code shim."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    model = AutoModel.from_pretrained(saved, trust_remote_code=True)
    return model, AutoProcessor.from_pretrained(saved, trust_remote_code=True)


def test_auto_classes_load_the_folder_and_caption_as_the_captioner_does(saved, loaded, photos):
    model, processor = loaded
    captioner = Captioner.from_pretrained(saved)
    inputs = processor(list(photos[:3]), return_tensors="pt")
    assert inputs["pixel_values"].shape == (3, 3, *2 * (captioner.model.preprocessing.size,))
    tokens = model.generate(**inputs)
    assert processor.batch_decode(tokens) == [caption.text for caption in captioner(photos[:3])]
    few = model.generate(**inputs, num_inference_steps=1, guidance_scale=1.5)
    wanted = [caption.text for caption in captioner(photos[:3], steps=1, guidance=1.5)]
    assert processor.batch_decode(few) == wanted
    assert AutoConfig.from_pretrained(saved, trust_remote_code=True).model_type == "ddcap"


def test_several_captions_of_an_image(loaded, photos):
    model, processor = loaded
    inputs = processor(photos[0])
    tokens = model.generate(**inputs, num_return_sequences=3)
    assert len(tokens) == 3
    settings = model.captioner.config.decoding
    with torch.no_grad():
        features = model.captioner.encode(inputs["pixel_values"].numpy())
        result = generate(
            model.captioner, features, settings, processor.tokenizer.end_id, captions_per_image=3
        )
    assert torch.equal(tokens, result.until(processor.tokenizer.end_id))


def test_forward_is_the_denoisers_prediction(loaded, photos):
    model, processor = loaded
    pixels = processor([photos[0], photos[1]])["pixel_values"]
    hidden = torch.full((2, 6), model.mask_token_id)
    with torch.no_grad():
        logits = model(pixels, hidden, torch.tensor([20, 20]))
        other = model(pixels.flip(0), hidden, torch.tensor([20, 20]))
    assert logits.shape == (2, 6, model.captioner.config.vocabulary_size)
    torch.testing.assert_close(logits, other.flip(0))
    assert not torch.allclose(logits[0], logits[1])


def test_an_autoregressive_model_generates_but_has_no_forward(tiny_ar_folder, tmp_path, photos, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    captioner = Captioner.from_pretrained(tiny_ar_folder)
    captioner.save_pretrained(tmp_path / "model")
    model = AutoModel.from_pretrained(tmp_path / "model", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "model", trust_remote_code=True)
    inputs = processor(photos[0])
    assert processor.batch_decode(model.generate(**inputs)) == [captioner(photos[0])[0].text]
    with pytest.raises(DDCapError, match="no timestep"):
        model(inputs["pixel_values"], torch.zeros(1, 3, dtype=torch.long), torch.tensor([1]))


def test_the_processor_gives_the_captioners_pixels(saved, loaded, photos):
    _, processor = loaded
    pixels = processor(photos[0], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(pixels[0], Captioner.from_pretrained(saved).pixels(photos[0]))
    told = json.loads((saved / "preprocessor_config.json").read_text())
    size = processor.preprocessing.size
    assert told["size"] == {"height": size, "width": size}
    assert told["image_mean"] == list(processor.preprocessing.mean)


def test_a_setting_by_two_names_is_refused(loaded, photos):
    model, processor = loaded
    with pytest.raises(RecipeError, match="num_inference_steps and steps are the same setting"):
        model.generate(**processor(photos[0]), num_inference_steps=2, steps=2)
    with pytest.raises(RecipeError, match="num"):
        model.generate(**processor(photos[0]), num=2)  # it is num_return_sequences here
