import json
import shutil

import numpy as np
import pytest
import torch

from ddcap.commands import main
from ddcap.errors import CheckpointError, DDCapError, ImageError
from ddcap.evaluation.clip_score import ClipScorer

transformers = pytest.importorskip("transformers")


def save_clip(path, seed):
    """A whole CLIP with random weights and a letter-by-letter tokenizer."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = transformers.CLIPTokenizer(vocabulary, [], model_max_length=40)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = transformers.CLIPConfig(
        text_config={**shape, **special, "vocab_size": len(words), "max_position_embeddings": 40},
        vision_config={**shape, "image_size": 32, "patch_size": 8},
        projection_dim=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.CLIPModel(config)
        for parameter in model.parameters():
            parameter.data.normal_(std=1.0)
    model.eval().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("whole_clip"), seed=1)


@pytest.fixture(scope="module")
def case(photos):
    images = {photo.stem: photo for photo in photos}
    captions = {
        photo.stem: f"{photo.stem} , seen from {'afar' * number}" for number, photo in enumerate(photos)
    }
    references = {
        photo.stem: [f"A picture no. {number + other} !" for other in range(1 + number % 3)]
        for number, photo in enumerate(photos)
    }
    return captions, references, images


def slowly(folder, caption, references, image):
    """The definition, one image at a time, by transformers' own preprocessing."""
    from PIL import Image
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})

    def text(caption):
        ids = tokenizer.encode(f"A photo depicts {caption}")
        ids = ids if len(ids) <= 40 else [*ids[:39], ids[-1]]
        return unit(model.text_projection(model.text_model(torch.tensor([ids])).pooler_output))

    def unit(features):
        vector = features[0].detach().double().numpy()
        return vector / np.sqrt((vector**2).sum())

    with torch.no_grad():
        pixels = processor(images=[Image.open(image).convert("RGB")], return_tensors="pt")["pixel_values"]
        seen = unit(model.visual_projection(model.vision_model(pixels).pooler_output))
    words = text(caption)
    clip_score = 2.5 * max(float(seen @ words), 0)
    closest = max(0.0, *(float(text(reference) @ words) for reference in references))
    harmonic = 0.0 if clip_score + closest == 0 else 2 * clip_score * closest / (clip_score + closest)
    return clip_score, harmonic


@pytest.mark.parametrize("seed", [1, 3])  # all cosines are positive with one, most negative with the other
def test_both_scores_are_those_of_the_definition(seed, case, tmp_path):
    captions, references, images = case
    folder = save_clip(tmp_path, seed)
    found = ClipScorer(str(folder)).score(captions, references, images)
    expected = [slowly(folder, captions[image], references[image], images[image]) for image in captions]
    for column, name in enumerate(("CLIPScore", "RefCLIPScore")):
        values = [row[column] for row in expected]
        assert max(values) > 0.1 and np.ptp(values) > 0.1 and (min(values) == 0) == (seed == 3)
        assert found[name].per_image == pytest.approx(values, abs=2e-3)
        assert found[name].value == pytest.approx(np.mean(values), abs=1e-3)


def test_a_batch_is_its_images_one_by_one(folder, case):
    captions, references, images = case
    scorer = ClipScorer(str(folder))
    together = scorer.score(captions, references, images)
    for row, image in enumerate(captions):
        alone = scorer.score({image: captions[image]}, references, images)
        for name, score in together.items():
            assert score.per_image[row] == pytest.approx(alone[name].value, abs=1e-5)


def test_a_caption_that_is_a_reference_is_as_close_as_can_be(folder, case):
    _, references, images = case
    recited = {image: texts[-1] for image, texts in references.items()}
    found = ClipScorer(str(folder)).score(recited, references, images)
    for clip_score, harmonic in zip(
        found["CLIPScore"].per_image, found["RefCLIPScore"].per_image, strict=True
    ):
        assert harmonic == pytest.approx(2 * clip_score / (clip_score + 1), abs=1e-5)


def test_the_command_line_prints_it_for_model_and_people(folder, captions_json, photos, tmp_path, capsys):
    pytest.importorskip("pycocoevalcap")
    predictions = tmp_path / "predictions.json"
    predictions.write_text(json.dumps([{"image_id": number, "caption": "a dog"} for number in range(3)]))
    arguments = ["--data", str(captions_json), "--images", str(photos[0].parent), "--split", "train"]
    assert main(["metrics", str(predictions), *arguments, "--fast", "--clip", str(folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    images = dict(zip("012", photos, strict=False))
    references = {image: ["unused"] for image in images}
    expected = ClipScorer(str(folder)).score(dict.fromkeys(images, "a dog"), references, images)["CLIPScore"]
    assert printed["metrics"]["CLIPScore"] == pytest.approx(100 * expected.value, abs=1e-3)
    low, high = printed["intervals_95"]["CLIPScore"]
    assert low <= printed["metrics"]["CLIPScore"] <= high
    assert {"CLIPScore", "RefCLIPScore"} <= printed["human"]["metrics"].keys()
    assert printed["clip"] == str(folder)
    assert (
        main(["metrics", str(predictions), *arguments[:2], *arguments[4:], "--fast", "--clip", str(folder)])
        == 0
    )
    assert "CLIPScore    not run: " in capsys.readouterr().out  # no images without --images


def test_no_such_clip(tmp_path, folder, tiny_clip_folder):
    halved = tmp_path / "halved"  # a tokenizer, but the weights of the image tower only
    shutil.copytree(folder, halved)
    shutil.copy(tiny_clip_folder / "model.safetensors", halved)
    for name in (tmp_path / "nowhere", tiny_clip_folder, halved):
        with pytest.raises(CheckpointError) as caught:
            ClipScorer(str(name))
        assert str(caught.value).startswith(f"{name}: cannot load a CLIP with a tokenizer")
        assert "\n" not in str(caught.value)
    with pytest.raises(DDCapError, match=r"^device 'cuda:77': not available here"):
        ClipScorer(str(folder), "cuda:77")


def test_a_missing_image(folder, case, tmp_path):
    captions, references, images = case
    with pytest.raises(ImageError, match=r"nowhere\.jpg"):
        ClipScorer(str(folder)).score(captions, references, dict.fromkeys(images, tmp_path / "nowhere.jpg"))
